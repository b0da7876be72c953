"""Attention with additive per-position query and key embeddings (IPT's task embedding, DETR's query_pos)."""

import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from ipt_fast.ops import _common
from ipt_fast.ops._common import (
    autocast_dtype,
    autocast_off,
    cast,
    check_integer,
    check_like,
    check_number,
    check_tensor,
)
from ipt_fast.ops._patch_attention_cpu import (
    bmm_backward,
    bmm_forward,
    empty_gradients,
    flash_backward,
    flash_forward,
    split_heads,
    unpack_gradients,
    with_embeds,
)
from ipt_fast.ops._patch_attention_cuda import cuda_backward, cuda_forward, cuda_reason
from ipt_fast.ops._registry import Backend, Backends, capability, module_missing, overridable, triton_missing

_OP = "patch_attention"
_MAX_HEAD_DIM = 128


class _Call(NamedTuple):
    """A call, as far as it decides about backends; dtype and head size are judged where given."""

    device: str
    dtype: torch.dtype | None = None
    head_dim: int | None = None


def patch_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, q_embed: Tensor | None, k_embed: Tensor | None, scale: float
) -> Tensor:
    """Return softmax((q + q_embed) (k + k_embed)^T * scale) v per head, as it reads; the oracle of every backend."""
    B, N, D = q.shape
    M = k.shape[1]
    q, k = with_embeds(q, k, q_embed, k_embed)
    q = q.reshape(B, N, num_heads, D // num_heads).transpose(1, 2)  # [B, H, N, d]
    k = k.reshape(B, M, num_heads, D // num_heads).transpose(1, 2)  # [B, H, M, d]
    v = v.reshape(B, M, num_heads, D // num_heads).transpose(1, 2)  # [B, H, M, d]
    weights = torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1)  # [B, H, N, M]
    return (weights @ v).transpose(1, 2).reshape(B, N, D)


# Backends. Those with a backward return out [B, N, D] and one float a row for it, lse [B, H, N] ("cpu": none); the
# others return out and are differentiated by autograd.


def _eager(q, k, v, q_embed, k_embed, num_heads, scale):
    with autocast_off(q):
        return patch_attention_reference(q, k, v, num_heads, q_embed, k_embed, scale)


def _sdpa(q, k, v, q_embed, k_embed, num_heads, scale):
    q, k, v = (split_heads(x, num_heads) for x in (*with_embeds(q, k, q_embed, k_embed), v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _xformers(q, k, v, q_embed, k_embed, num_heads, scale):
    from xformers.ops import memory_efficient_attention

    q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (*with_embeds(q, k, q_embed, k_embed), v))  # [B, N, H, d]
    return memory_efficient_attention(q, k, v, scale=scale).flatten(2)


def _triton(*args):
    from ipt_fast.kernels.patch_attention import patch_attention_forward

    return patch_attention_forward(*args)


def _triton_backward(*args):
    from ipt_fast.kernels.patch_attention import patch_attention_backward

    return patch_attention_backward(*args)


def _triton_reason(call: _Call) -> str | None:
    if reason := triton_missing(call.device):
        return reason
    if call.dtype == torch.float64:
        return "has no float64 kernel"
    if call.head_dim is not None and call.head_dim > _MAX_HEAD_DIM:
        return f"needs a head size D / num_heads of at most {_MAX_HEAD_DIM} (got {call.head_dim})"
    return None


def _cpu_reason(call: _Call) -> str | None:
    kind = torch.device(call.device).type
    return None if kind in ("cpu", "meta") else f"serves CPU tensors (found {kind})"  # meta: shapes only


def _xformers_reason(call: _Call) -> str | None:
    kind = torch.device(call.device).type
    if kind != "cuda":
        return f"needs a CUDA device (found {kind})"
    return module_missing("xformers") or ("has no float64 kernel" if call.dtype == torch.float64 else None)


def _preference(call: _Call) -> list[str]:
    if torch.device(call.device).type == "cuda" and call.dtype in (None, torch.float16, torch.bfloat16):
        found = capability(call.device)
        if found and found < (8, 0):
            return ["cuda", "sdpa", "xformers", "eager", "triton", "cpu"]
        return ["triton", "sdpa", "xformers", "eager", "cuda", "cpu"]
    # float32 matmuls use no tensor cores in the Triton kernel, and on a CPU it is Triton's interpreter.
    order = ["sdpa", "xformers", "eager", "triton", "cuda"]
    # PyTorch's fused kernel uses AMX where there is some, but not AVX512-BF16.
    wins = call.dtype == torch.bfloat16 and _common.has_fast_bf16() and not _common.has_amx()
    order.insert(0 if wins else 2, "cpu")
    return order


BACKENDS = Backends(
    _OP,
    _Call,
    (
        Backend("triton", _triton, _triton_backward, _triton_reason),
        Backend("cuda", cuda_forward, cuda_backward, lambda call: cuda_reason(*call)),
        Backend("cpu", bmm_forward, bmm_backward, _cpu_reason),
        Backend("sdpa", flash_forward, flash_backward),
        Backend("xformers", _xformers, None, _xformers_reason),
        Backend("eager", _eager),
    ),
    _preference,
)
# "sdpa" is PyTorch's flash kernel itself on a CPU, which then need not keep the sums q + q_embed and k + k_embed.
# Elsewhere PyTorch chooses between several kernels.
_SDPA_ELSEWHERE = Backend("sdpa", _sdpa)


# Dispatcher registration. Saved for backward: q, k, v, out and lse; the embeds are added again. The gradients come
# packed, as ``empty_gradients`` says, so that the caller's packed projection needs no copy to join them.

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? q_embed, Tensor? k_embed"


def _forward_fake(q, k, v, q_embed, k_embed, num_heads, scale, impl):
    B, N, D = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    lse = q.new_empty(B, num_heads, 0) if impl == "cpu" else q.new_empty(B, num_heads, N, dtype=dtype)
    return q.new_empty(B, N, D), lse


def _backward_fake(grad, q, k, v, q_embed, k_embed, out, lse, num_heads, scale, impl):
    return empty_gradients(q, k)


attention = BACKENDS.define_forward(
    f"({_INPUTS}, int num_heads, float scale, str impl) -> (Tensor out, Tensor lse)", _forward_fake
)
attention_backward = BACKENDS.define_backward(
    f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, int num_heads, float scale, str impl)"
    " -> (Tensor first, Tensor second)",
    _backward_fake,
)


class _PatchAttention(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(attention)

    @staticmethod
    def setup_context(ctx, inputs, output):
        out, lse = output
        ctx.save_for_backward(*inputs[:5], out, lse)
        ctx.mark_non_differentiable(lse)
        ctx.options = inputs[5:]

    @staticmethod
    def backward(ctx, grad, _):
        q, k, *_ = saved = ctx.saved_tensors  # once: recomputed by checkpointing, they can be had no second time
        first, second = attention_backward(grad, *saved, *ctx.options)
        dq, dk, dv = unpack_gradients(first, second, q, k)
        # An embedding serves the whole batch, so its gradient is the sum over the batch; PyTorch adds in float32.
        dq_embed = dq.sum(0) if ctx.needs_input_grad[3] else None  # [N, D]
        dk_embed = dk.sum(0) if ctx.needs_input_grad[4] else None  # [M, D]
        return dq, dk, dv, dq_embed, dk_embed, None, None, None


@overridable
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
    """Compute multi-head attention where ``q_embed`` and ``k_embed`` are added to every image's q and k.

    Per head::

        out = softmax((q + q_embed) (k + k_embed)^T * scale) v

    In IPT (Eq. 2 of "Pre-Trained Image Processing Transformer", CVPR 2021; ``model/ipt.py``, TransformerDecoderLayer,
    of the reference code) the task embedding E is added before the projections; as W(x + E) = Wx + WE, the embeds
    here are E Wq^T and E Wk^T, one [N, D] matrix for the whole batch. Differentiable in all five tensors (twice, and
    in forward mode, only with impl="eager").

    Args:
        q: [B, N, D]; float16, bfloat16, float32 or float64. B may be 0.
        k: [B, M, D]. v: [B, M, D]. Dtype and device of q. Views of a packed projection [B, N, 3D] (``chunk``) are
            read by stride: no copy is made as long as the last dimension is dense.
        num_heads: H; head h owns the columns h d to (h + 1) d with d = D / H, any d (Triton: up to 128).
        q_embed: [N, D] or None. k_embed: [M, D] or None. Their gradients are sums over the batch.
        scale: of the scores; None means d ** -0.5. A learnable scale is multiplied into q by the caller.
        impl: "triton", "cuda" (float16, d of 32, 48 or 64), "cpu", "sdpa", "xformers" or "eager", see
            ``backend_status``; None takes ``IPT_FAST_IMPL`` or, without it, the first that can serve.

    Under ``torch.autocast`` all five tensors are cast to the autocast dtype first (float64 is left alone), as
    ``scaled_dot_product_attention`` does; the result has that dtype. Every backend sums in float32; "eager" and "cpu"
    round scores and probabilities to the dtype in between, on a CPU so does "sdpa" for bfloat16 gradients. A query
    that is nan gives nan, on every backend.

    Returns:
        [B, N, D] in the dtype of q, heads side by side as in q.

    Raises:
        ValueError: shapes that do not go together, D no multiple of num_heads, an unknown ``impl``.
        TypeError: arguments of a wrong type, tensors of different dtypes or devices, or not floating.
        RuntimeError: the backend that ``impl`` names cannot serve this call; the message says why.
    """
    for name, x in (("q", q), ("k", k), ("v", v), ("q_embed", q_embed), ("k_embed", k_embed)):
        if x is not None or "_" not in name:
            check_tensor(_OP, name, x)
    dtype = autocast_dtype(q.device.type)
    if dtype is not None and q.dtype != torch.float64:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        q_embed, k_embed = cast(q_embed, dtype), cast(k_embed, dtype)
    _check(q, k, v, num_heads, q_embed, k_embed)
    head_dim = q.shape[-1] // num_heads
    scale = 1.0 / math.sqrt(head_dim) if scale is None else check_number(_OP, "scale", scale)
    if scale == 0:  # GEMM libraries leave out a product that is to be multiplied by 0, though it be nan
        q, q_embed, scale = q * 0, None if q_embed is None else q_embed * 0, 1.0
    backend = BACKENDS.resolve(impl, _Call(str(q.device), q.dtype, operator.index(head_dim)))
    if q.shape[0] == 0:
        return patch_attention_reference(q, k, v, num_heads, q_embed, k_embed, scale)
    if backend.name == "sdpa" and q.device.type != "cpu":
        backend = _SDPA_ELSEWHERE
    out = BACKENDS.call(_PatchAttention, backend, (q, k, v, q_embed, k_embed), num_heads, scale)
    return out if isinstance(out, Tensor) else out[0]


def backend_with_backward(x: Tensor, num_heads: int) -> str | None:
    """Return the backend that would serve tokens x [B, N, D], or None if autograd has to differentiate it."""
    backend = BACKENDS.resolve(None, _Call(str(x.device), x.dtype, x.shape[-1] // num_heads))
    elsewhere = backend.name == "sdpa" and x.device.type != "cpu"
    return None if elsewhere or backend.backward is None else backend.name


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
    if N == 0 or M == 0:
        raise ValueError(f"{_OP}: needs at least one token (got N={N}, M={M})")
    check_integer(_OP, "num_heads", num_heads, 1)
    if D == 0 or D % num_heads:
        raise ValueError(f"{_OP}: D={D} must be a multiple of num_heads (got {num_heads})")
    for name, embed, length in (("q_embed", q_embed, N), ("k_embed", k_embed, M)):
        if embed is not None and (embed.dim() != 2 or embed.shape[0] != length or embed.shape[1] != D):
            raise ValueError(f"{_OP}: {name} must be [{length}, {D}], one for all images (got {list(embed.shape)})")
    for name, x in (("k", k), ("v", v), ("q_embed", q_embed), ("k_embed", k_embed)):
        if x is not None:
            check_like(_OP, name, x, "q", q)


backend_status = BACKENDS.status
__all__ = ["backend_status", "patch_attention", "patch_attention_reference"]
