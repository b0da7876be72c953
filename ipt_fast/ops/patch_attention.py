"""Attention with additive per-position query and key embeddings (IPT's task embedding, DETR's query_pos)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ipt_fast.ops import _common
from ipt_fast.ops._common import any_requires_grad
from ipt_fast.ops._patch_attention_cpu import bmm_attention, bmm_attention_backward
from ipt_fast.ops._registry import choose, constant_to_compilers, module_missing, triton_missing

_OP = "patch_attention"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_HEAD_DIM = 128


def patch_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    q_embed: Tensor | None,
    k_embed: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax((q + q_embed) (k + k_embed)^T * scale) v per head, written as it reads; the oracle of every backend."""
    B, N, D = q.shape
    M = k.shape[1]
    q = q if q_embed is None else q + q_embed
    k = k if k_embed is None else k + k_embed
    q = q.reshape(B, N, num_heads, D // num_heads).transpose(1, 2)  # [B, H, N, d]
    k = k.reshape(B, M, num_heads, D // num_heads).transpose(1, 2)  # [B, H, M, d]
    v = v.reshape(B, M, num_heads, D // num_heads).transpose(1, 2)  # [B, H, M, d]
    weights = torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1)  # [B, H, N, M]
    return (weights @ v).transpose(1, 2).reshape(B, N, D)


# Dispatcher registration. One pair of ops for the backends whose backward is written out here: "triton", "cpu", and
# "sdpa" on a CPU. Saved for backward: q, k, v, out and one float a row ("cpu": none); the embeds are added again.

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? q_embed, Tensor? k_embed"
torch.library.define(
    f"ipt_fast::{_OP}",
    f"({_INPUTS}, int num_heads, float scale, str impl) -> (Tensor out, Tensor lse)",
    tags=torch.Tag.pt2_compliant_tag,
)
# The gradients come packed, so that the caller's packed projection needs no copy to join them:
# N == M: dqkv [B, N, 3D] and an empty tensor; otherwise dq [B, N, D] and dkv [B, M, 2D].
torch.library.define(
    f"ipt_fast::{_OP}_backward",
    f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, int num_heads, float scale, str impl)"
    " -> (Tensor first, Tensor second)",
    tags=torch.Tag.pt2_compliant_tag,
)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # view [B, H, N, d]


def _dense_rows(x: Tensor) -> Tensor:
    # The kernels step through a row by one and do not check; rows may lie any distance apart.
    return x if x.stride(-1) == 1 else x.contiguous()


def _no_lse(q: Tensor, num_heads: int) -> Tensor:
    return q.new_empty(q.shape[0], num_heads, 0)


def _unpacked(first: Tensor, second: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    # dq, dk and dv as views of what the backward returns.
    if q.shape[1] == k.shape[1]:
        return first.chunk(3, dim=-1)
    return first, *second.chunk(2, dim=-1)


def _plus(x: Tensor, embed: Tensor | None) -> Tensor:
    return x if embed is None else x + embed


@torch.library.impl(f"ipt_fast::{_OP}", "CompositeExplicitAutograd")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_embed: Tensor | None,
    k_embed: Tensor | None,
    num_heads: int,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    if impl == "triton":
        from ipt_fast.kernels.patch_attention import patch_attention_forward

        return patch_attention_forward(q, k, v, q_embed, k_embed, num_heads, scale)
    if impl == "cpu":
        return bmm_attention(q, k, v, q_embed, k_embed, num_heads, scale), _no_lse(q, num_heads)
    q, k, v = (_dense_rows(x) for x in (_plus(q, q_embed), _plus(k, k_embed), v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _heads(q, num_heads), _heads(k, num_heads), _heads(v, num_heads), 0.0, False, scale=scale
    )
    return out.transpose(1, 2).flatten(2), lse.contiguous()  # [B, N, D], [B, H, N]


@torch.library.impl(f"ipt_fast::{_OP}_backward", "CompositeExplicitAutograd")
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_embed: Tensor | None,
    k_embed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    if impl == "triton":
        from ipt_fast.kernels.patch_attention import patch_attention_backward

        return patch_attention_backward(grad, q, k, v, q_embed, k_embed, out, lse, num_heads, scale)
    q, k = _plus(q, q_embed), _plus(k, k_embed)
    if impl == "cpu":
        first, second = _backward_fake(grad, q, k, v, None, None, out, lse, num_heads, scale, impl)
        bmm_attention_backward(grad, q, k, v, num_heads, scale, *_unpacked(first, second, q, k))
        return first, second
    g, *qkv, o = (_heads(_dense_rows(x), num_heads) for x in (grad, q, k, v, out))
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        g, *qkv, o, lse, 0.0, False, scale=scale
    )
    dq, dk, dv = (x.transpose(1, 2).flatten(2) for x in grads)
    if q.shape[1] == k.shape[1]:
        return torch.cat([dq, dk, dv], -1), q.new_empty(0)
    return dq, torch.cat([dk, dv], -1)


@torch.library.register_fake(f"ipt_fast::{_OP}")
def _forward_fake(q, k, v, q_embed, k_embed, num_heads, scale, impl):
    B, N, D = q.shape
    if impl == "cpu":
        return q.new_empty(B, N, D), _no_lse(q, num_heads)
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(B, N, D), q.new_empty(B, num_heads, N, dtype=lse_dtype)


@torch.library.register_fake(f"ipt_fast::{_OP}_backward")
def _backward_fake(grad, q, k, v, q_embed, k_embed, out, lse, num_heads, scale, impl):
    B, N, D = q.shape
    M = k.shape[1]
    if N == M:
        return q.new_empty(B, N, 3 * D), q.new_empty(0)
    return q.new_empty(B, N, D), q.new_empty(B, M, 2 * D)


class _PatchAttentionGradient(torch.autograd.Function):
    # A node of its own, connected to all inputs, so that a second derivative meets a reason and not a missing path.
    @staticmethod
    def forward(ctx, *args):
        return torch.ops.ipt_fast.patch_attention_backward(*args)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(f'{_OP}: this backend cannot differentiate twice; use impl="eager"')


class _PatchAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, q_embed, k_embed, num_heads, scale, impl):
        out, lse = torch.ops.ipt_fast.patch_attention(q, k, v, q_embed, k_embed, num_heads, scale, impl)
        ctx.save_for_backward(q, k, v, q_embed, k_embed, out, lse)
        ctx.num_heads, ctx.scale, ctx.impl = num_heads, scale, impl
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, q_embed, k_embed, out, lse = ctx.saved_tensors
        first, second = _PatchAttentionGradient.apply(
            grad, q, k, v, q_embed, k_embed, out, lse, ctx.num_heads, ctx.scale, ctx.impl
        )
        dq, dk, dv = _unpacked(first, second, q, k)
        # An embedding serves the whole batch, so its gradient is the sum over the batch, taken in float32.
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        dq_embed = dq.sum(0, dtype=wide).to(q.dtype) if ctx.needs_input_grad[3] else None  # [N, D]
        dk_embed = dk.sum(0, dtype=wide).to(q.dtype) if ctx.needs_input_grad[4] else None  # [M, D]
        return dq, dk, dv, dq_embed, dk_embed, None, None, None


def _own_backward(q, k, v, q_embed, k_embed, num_heads, scale, impl):
    inputs = [x for x in (q, k, v, q_embed, k_embed) if x is not None]
    if any_requires_grad(inputs):
        return _PatchAttention.apply(q, k, v, q_embed, k_embed, num_heads, scale, impl)
    return torch.ops.ipt_fast.patch_attention(q, k, v, q_embed, k_embed, num_heads, scale, impl)[0]


def _triton(q, k, v, q_embed, k_embed, num_heads, scale):
    return _own_backward(q, k, v, q_embed, k_embed, num_heads, scale, "triton")


def _cpu(q, k, v, q_embed, k_embed, num_heads, scale):
    return _own_backward(q, k, v, q_embed, k_embed, num_heads, scale, "cpu")


def _sdpa(q, k, v, q_embed, k_embed, num_heads, scale):
    if q.device.type == "cpu":
        return _own_backward(q, k, v, q_embed, k_embed, num_heads, scale, "sdpa")
    q, k = _plus(q, q_embed), _plus(k, k_embed)
    q, k, v = _heads(q, num_heads), _heads(k, num_heads), _heads(v, num_heads)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _xformers(q, k, v, q_embed, k_embed, num_heads, scale):
    from xformers.ops import memory_efficient_attention

    q, k = _plus(q, q_embed), _plus(k, k_embed)
    q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (q, k, v))  # [B, N, H, d]
    return memory_efficient_attention(q, k, v, scale=scale).flatten(2)


def _eager(q, k, v, q_embed, k_embed, num_heads, scale):
    if not _autocast_enabled(q.device.type):
        return patch_attention_reference(q, k, v, num_heads, q_embed, k_embed, scale)
    with torch.autocast(q.device.type, enabled=False):
        return patch_attention_reference(q, k, v, num_heads, q_embed, k_embed, scale)


_BACKENDS: dict[str, Callable[..., Tensor]] = {
    "triton": _triton,
    "cpu": _cpu,
    "sdpa": _sdpa,
    "xformers": _xformers,
    "eager": _eager,
}


def _why_not(device: str, dtype: torch.dtype | None = None, head_dim: int | None = None) -> dict[str, str | None]:
    """Every backend, best first -> None or why it cannot serve; dtype and head size are judged where given."""
    kind = torch.device(device).type
    half = dtype in (None, torch.float16, torch.bfloat16)
    triton = triton_missing(device)
    if triton is None and dtype == torch.float64:
        triton = "has no float64 kernel"
    if triton is None and head_dim is not None and head_dim > _MAX_HEAD_DIM:
        triton = f"needs a head size D / num_heads of at most {_MAX_HEAD_DIM} (got {head_dim})"
    xformers = None if kind == "cuda" else f"needs a CUDA device (found {kind})"
    xformers = xformers or module_missing("xformers")
    if xformers is None and dtype == torch.float64:
        xformers = "has no float64 kernel"
    cpu = None if kind in ("cpu", "meta") else f"serves CPU tensors (found {kind})"  # meta: shapes only
    reasons = {"triton": triton, "cpu": cpu, "sdpa": None, "xformers": xformers, "eager": None}
    if kind == "cuda" and half:
        return reasons
    # float32 products use no tensor cores in the Triton kernel, and on a CPU it is Triton's interpreter.
    order = ["sdpa", "xformers", "eager", "triton"]
    # PyTorch's fused kernel uses AMX where there is some, but not AVX512-BF16.
    wins = dtype == torch.bfloat16 and _common.has_fast_bf16() and not _common.has_amx()
    order.insert(0 if wins else 2, "cpu")
    return {name: reasons[name] for name in order}


def backend_status(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Every backend in the order of automatic choice on ``device`` -> None, or why this machine cannot run it."""
    return _why_not(str(device))


def _autocast_enabled(device: str) -> bool:
    # Asking is an error for devices without autocast, such as "meta".
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@constant_to_compilers
def _choose(impl: str | None, device: str, dtype: torch.dtype, head_dim: int) -> str:
    return choose(_OP, impl, _why_not(device, dtype, head_dim))


def _check(q: Tensor, k: Tensor, v: Tensor, num_heads: int, q_embed: Tensor | None, k_embed: Tensor | None) -> None:
    if q.dim() != 3 or k.dim() != 3 or v.dim() != 3:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"{_OP}: q must be [B, N, D], k and v [B, M, D] (got {shapes})")
    B, N, D = q.shape
    M = k.shape[1]
    if k.shape != v.shape or k.shape[0] != B or k.shape[2] != D:
        raise ValueError(
            f"{_OP}: k and v must both be [{B}, M, {D}] to go with q {list(q.shape)} "
            f"(got k {list(k.shape)}, v {list(v.shape)})"
        )
    if B == 0 or N == 0 or M == 0:
        raise ValueError(f"{_OP}: needs at least one image and one token (got B={B}, N={N}, M={M})")
    if num_heads < 1 or D % num_heads:
        raise ValueError(f"{_OP}: D={D} must be a multiple of num_heads (got {num_heads})")
    for name, embed, length in (("q_embed", q_embed, N), ("k_embed", k_embed, M)):
        if embed is not None and (embed.dim() != 2 or embed.shape[0] != length or embed.shape[1] != D):
            raise ValueError(f"{_OP}: {name} must be [{length}, {D}], one for all images (got {list(embed.shape)})")
    for name, x in (("k", k), ("v", v), ("q_embed", q_embed), ("k_embed", k_embed)):
        if x is not None and (x.dtype != q.dtype or x.device != q.device):
            raise TypeError(
                f"{_OP}: {name} must have the dtype and device of q, {q.dtype} on {q.device} "
                f"(got {x.dtype} on {x.device}); cast it, or run under torch.autocast"
            )
    if q.dtype not in _DTYPES:
        raise TypeError(f"{_OP}: q, k and v must be float16, bfloat16, float32 or float64 (got {q.dtype})")


def patch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    q_embed: Tensor | None = None,
    k_embed: Tensor | None = None,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Multi-head attention where ``q_embed`` and ``k_embed`` are added to every image's q and k::

        out = softmax((q + q_embed) (k + k_embed)^T * scale) v        for each head

    In IPT (Eq. 2 of "Pre-Trained Image Processing Transformer", CVPR 2021; ``model/ipt.py``, TransformerDecoderLayer,
    of the reference code) the task embedding E is added before the projections; as W(x + E) = Wx + WE, the embeds
    here are E Wq^T and E Wk^T, one [N, D] matrix for the whole batch. Differentiable in all five tensors (twice only
    with impl="eager").

    Args:
        q: [B, N, D]; float16, bfloat16, float32 or float64.
        k: [B, M, D]. v: [B, M, D]. Dtype and device of q. Views of a packed projection [B, N, 3D] (``chunk``) are
            read by stride: no copy is made as long as the last dimension is dense.
        num_heads: H; head h owns the columns h d to (h + 1) d with d = D / H, any d (Triton: up to 128).
        q_embed: [N, D] or None. k_embed: [M, D] or None. Their gradients are sums over the batch.
        scale: of the scores; None means d ** -0.5.
        impl: "triton", "cpu", "sdpa", "xformers" or "eager", see ``backend_status``; None takes ``IPT_FAST_IMPL`` or,
            without it, the first that can serve.

    Under ``torch.autocast`` all five tensors are cast to the autocast dtype first (float64 is left alone), as
    ``scaled_dot_product_attention`` does; the result has that dtype. Every backend sums products in float32; "eager"
    and "cpu" round scores and probabilities to the dtype in between.

    Returns:
        [B, N, D] in the dtype of q, heads side by side as in q.

    Raises:
        ValueError: shapes that do not go together, D no multiple of num_heads, an unknown ``impl``.
        TypeError: tensors of different dtypes or devices, or not floating.
        RuntimeError: the backend that ``impl`` names cannot serve this call; the message says why.
    """
    device = q.device.type
    if q.dtype != torch.float64 and _autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        q_embed = None if q_embed is None else q_embed.to(dtype)
        k_embed = None if k_embed is None else k_embed.to(dtype)
    _check(q, k, v, num_heads, q_embed, k_embed)
    head_dim = q.shape[-1] // num_heads
    backend = _choose(impl, device, q.dtype, head_dim)
    scale = 1.0 / math.sqrt(head_dim) if scale is None else float(scale)
    return _BACKENDS[backend](q, k, v, q_embed, k_embed, num_heads, scale)
