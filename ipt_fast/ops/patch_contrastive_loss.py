"""The contrastive loss between the patches of a batch (Eq. 5 of the paper), and its supervised-contrastive variant."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ipt_fast.ops import _common, _patch_contrastive_loss_cpu
from ipt_fast.ops._registry import choose, constant_to_compilers, triton_missing

_OP = "patch_contrastive_loss"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MODES = ("paper", "supcon")
_REDUCTIONS = ("mean", "sum", "none")
_SCOPES = ("local", "global")
_TEMPERATURE = 0.07
_MIN_TEMPERATURE = 0.025  # exp(-2 / temperature) is still a float32 number: no maximum has to be subtracted
_NO_DIRECTION = 1e-12  # a token with a norm up to this has no direction


def unit_tokens(features: Tensor) -> Tensor:
    """Tokens scaled to norm 1; zero tokens stay zero with a zero gradient; nan, inf and overflowing norms give nan."""
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)  # [B, N, 1]
    zero = norm <= _NO_DIRECTION
    norm = norm.masked_fill(norm.isinf(), torch.nan)
    return torch.where(zero, 0.0, features / norm.masked_fill(zero, 1.0))


def patch_contrastive_loss_reference(
    features: Tensor, mode: str = "paper", temperature: float = _TEMPERATURE, others: Tensor | None = None
) -> Tensor:
    """Values per image [B], written as Eq. 5 reads, in the dtype of ``features``; the oracle of every backend.

    ``others`` [K, N, D] are images that serve as negatives and are no anchors themselves (other ranks' images).
    """
    B, N, _ = features.shape
    f = unit_tokens(features)  # [B, N, D]
    bank = f if others is None else torch.cat([f, unit_tokens(others)])  # [B + K, N, D]
    d = torch.einsum("jad,kbd->jakb", f, bank)  # [B, N, B + K, N] cosine similarities
    if mode == "paper":
        positives = torch.einsum("jad,jbd->jab", f, f)  # [B, N, N]
        same_image = torch.eye(B, len(bank), dtype=torch.bool, device=d.device)[:, None, :, None]
        negatives = d.masked_fill(same_image, -torch.inf).logsumexp(2)  # [B, N, N], over the images k != j
        return (negatives - positives).mean((1, 2))
    d = d.reshape(B * N, -1) / temperature  # [B N, (B + K) N]
    same_patch = torch.eye(*d.shape, dtype=torch.bool, device=d.device)
    log_p = d - d.masked_fill(same_patch, -torch.inf).logsumexp(1, keepdim=True)
    own = log_p.reshape(B, N, -1, N).diagonal(dim1=0, dim2=2)  # [N, N, B] patches of the same image
    own = own.movedim(2, 0).masked_fill(torch.eye(N, dtype=torch.bool, device=d.device), 0.0)  # [B, N, N]
    return -own.sum((1, 2)) / (N * (N - 1))


def _inverse_norms(features: Tensor) -> Tensor:
    """[B, N, 1]; 0 for zero tokens, nan where nan, inf or an overflow is in the norm."""
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return norm.masked_fill(norm.isinf(), torch.nan).reciprocal_().masked_fill_(norm <= _NO_DIRECTION, 0.0)


def _wide(features: Tensor) -> Tensor:
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _unit(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Unit tokens, contiguous, in ``dtype`` or what ``_wide`` makes; few images at once, so as to hold no wide copy."""
    unit = torch.empty(features.shape, dtype=dtype or _wide(features[:0]).dtype, device=features.device)
    for out, part in zip(unit.split(4), features.split(4), strict=True):
        wide = _wide(part)
        out.copy_(wide * _inverse_norms(wide))
    return unit


def _through_norm(g: Tensor, features: Tensor, pull: Tensor) -> Tensor:
    """From the gradient ``g`` of unit tokens, plus ``pull`` [B, D] on each, to that of ``features``; in place of g."""
    for g_part, part, pull_part in zip(g.split(4), features.split(4), pull.split(4), strict=True):
        part = _wide(part)
        inverse = _inverse_norms(part)
        unit = part * inverse
        g_part += pull_part[:, None]
        along = torch.einsum("bnd,bnd->bn", g_part, unit)
        g_part.addcmul_(unit, along[..., None], value=-1).mul_(inverse)
    return g


def _values(sums: Tensor, unit: Tensor, mode: str, temperature: float) -> tuple[Tensor, Tensor]:
    """Values per image [B] and token sums [B, D], from the sums over the negatives; positives in closed form."""
    B, N, _ = unit.shape
    token_sum = unit.sum(1)  # [B, D]
    positives = token_sum.square().sum(1)  # of all N^2 ordered pairs
    if mode == "paper":
        return sums.log().mean((1, 2)) - positives / N**2, token_sum
    positives = positives - torch.linalg.vector_norm(unit, dim=(1, 2)) ** 2  # without a token with itself
    log_sums = sums.log().view(B, N).mean(1) + 1 / temperature
    return log_sums - positives / (N * (N - 1) * temperature), token_sum


def _rates(weights: Tensor, sums: Tensor) -> Tensor:
    """Gradient of the log-sums in the loss / the sums themselves: [B, N, N], or [B N, 1, 1] for "supcon"."""
    B, (T, N, _) = len(weights), sums.shape
    each = weights / (N * N if T == B else T // B)
    return each.repeat_interleave(T // B)[:, None, None] / sums


def _pull(weights: Tensor, token_sum: Tensor, N: int, mode: str, temperature: float) -> Tensor:
    """Gradient of the positives with respect to each unit token of an image, [B, D]."""
    pairs = N * N if mode == "paper" else N * (N - 1) * temperature
    return token_sum * (-2 / pairs * weights)[:, None]


def _bf16_products(dtype: torch.dtype, mode: str) -> bool:
    """Whether the CPU's products may and should be bfloat16: for mode "supcon" the temperature makes them too rough."""
    permitted = dtype == torch.bfloat16 or (dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium")
    return permitted and mode == "paper" and _common.has_fast_bf16()


def _tokens_cpu(features: Tensor, mode: str) -> Tensor:
    """Unit tokens for the products: [B, N, D], or [B N, 1, D] for "supcon", where every token is its own image."""
    unit = _unit(features, torch.bfloat16 if _bf16_products(features.dtype, mode) else None)
    return unit if mode == "paper" else unit.flatten(0, 1).unsqueeze(1)


def _forward_cpu(features: Tensor, others: Tensor | None, mode: str, temperature: float) -> tuple[Tensor, ...]:
    tau, shift = (1.0, 0.0) if mode == "paper" else (temperature, 1.0)
    with torch.autocast("cpu", enabled=False):
        bank = None if others is None else _tokens_cpu(others, mode)
        sums = _patch_contrastive_loss_cpu.exp_sums(_tokens_cpu(features, mode), bank, tau, shift)
        return sums, *_values(sums, _unit(features), mode, temperature)


def _backward_cpu(
    features: Tensor,
    rates: Tensor,
    pull: Tensor,
    others: Tensor | None,
    others_rates: Tensor | None,
    mode: str,
    temperature: float,
) -> Tensor:
    tau, shift = (1.0, 0.0) if mode == "paper" else (temperature, 1.0)
    with torch.autocast("cpu", enabled=False):
        bank = None if others is None else _tokens_cpu(others, mode)
        f = _tokens_cpu(features, mode)
        g = _patch_contrastive_loss_cpu.exp_sums_gradient(f, rates, bank, others_rates, tau, shift)
        return _through_norm(g.view_as(features), features, pull).to(features.dtype)


def _triton_products(features: Tensor) -> tuple[torch.dtype, str]:
    """Dtype and precision of the products: float32 features follow ``torch.set_float32_matmul_precision``."""
    if features.dtype != torch.float32:
        return features.dtype, "ieee"
    allowed = torch.get_float32_matmul_precision()
    return torch.bfloat16 if allowed == "medium" else torch.float32, "tf32" if allowed == "high" else "ieee"


def _forward_triton(features: Tensor, others: Tensor | None, mode: str, temperature: float) -> tuple[Tensor, ...]:
    from ipt_fast.kernels.patch_contrastive_loss import patch_contrastive_forward

    sums, log_means, token_sum = patch_contrastive_forward(features, others, *_triton_products(features))
    return sums, log_means - token_sum.square().sum(1) / features.shape[1] ** 2, token_sum


def _backward_triton(
    features: Tensor,
    rates: Tensor,
    pull: Tensor,
    others: Tensor | None,
    others_rates: Tensor | None,
    mode: str,
    temperature: float,
) -> Tensor:
    from ipt_fast.kernels.patch_contrastive_loss import patch_contrastive_backward

    rates = rates if others_rates is None else torch.cat([rates, others_rates])  # [K, N, N]
    with torch.autocast(features.device.type, enabled=False):
        return patch_contrastive_backward(features, rates, pull, others, *_triton_products(features))


_IMAGES = "Tensor features, Tensor? others"
_HOW = "str mode, float temperature"
_library = torch.library.Library("ipt_fast", "FRAGMENT")
for _name in ("cpu", "triton"):
    _library.define(f"patch_contrastive_{_name}({_IMAGES}, {_HOW}) -> (Tensor, Tensor, Tensor)")
    _library.define(
        f"patch_contrastive_{_name}_backward(Tensor features, Tensor rates, Tensor pull, Tensor? others, "
        f"Tensor? others_rates, {_HOW}) -> Tensor"
    )
_library.impl("patch_contrastive_cpu", _forward_cpu, "CPU")
_library.impl("patch_contrastive_cpu_backward", _backward_cpu, "CPU")
for _device in ("CUDA", "CPU"):  # on a CPU: Triton's interpreter
    _library.impl("patch_contrastive_triton", _forward_triton, _device)
    _library.impl("patch_contrastive_triton_backward", _backward_triton, _device)


@torch.library.register_fake("ipt_fast::patch_contrastive_triton")
@torch.library.register_fake("ipt_fast::patch_contrastive_cpu")
def _forward_fake(features, others, mode, temperature):
    B, N, D = features.shape
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    sums = features.new_empty((B, N, N) if mode == "paper" else (B * N, 1, 1), dtype=dtype)
    return sums, sums.new_empty(B), sums.new_empty(B, D)


@torch.library.register_fake("ipt_fast::patch_contrastive_triton_backward")
@torch.library.register_fake("ipt_fast::patch_contrastive_cpu_backward")
def _backward_fake(features, rates, pull, others, others_rates, mode, temperature):
    return torch.empty(features.shape, dtype=features.dtype, device=features.device)


def _of_other_ranks(own: Tensor) -> Tensor:
    """What the other ranks have in place of ``own``, joined in rank order."""
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own.contiguous())
    del gathered[dist.get_rank()]
    return torch.cat(gathered)


def _fused_ops(backend: str) -> tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., Tensor]]:
    ops = torch.ops.ipt_fast
    if backend == "cpu":
        return ops.patch_contrastive_cpu, ops.patch_contrastive_cpu_backward
    return ops.patch_contrastive_triton, ops.patch_contrastive_triton_backward


class _Fused(torch.autograd.Function):
    """Saves the features and the sums over the negatives; the backward recomputes the similarities."""

    @staticmethod
    def forward(ctx, features: Tensor, mode: str, temperature: float, ranks: int, backend: str) -> Tensor:
        others = _of_other_ranks(features) if ranks > 1 else None
        op, _ = _fused_ops(backend)
        sums, values, token_sum = op(features, others, mode, temperature)
        ctx.save_for_backward(features, sums, token_sum, others)
        ctx.mode, ctx.temperature, ctx.backend = mode, temperature, backend
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, weights: Tensor):
        features, sums, token_sum, others = ctx.saved_tensors
        pull = _pull(weights, token_sum, features.shape[1], ctx.mode, ctx.temperature)
        rates = _rates(weights, sums)
        # An image's gradient needs the rates of every image it is a negative of: gathered, so that no gradient is sent.
        others_rates = None if others is None else _of_other_ranks(rates)
        _, op = _fused_ops(ctx.backend)
        grad = op(features, rates, pull, others, others_rates, ctx.mode, ctx.temperature)
        return grad, None, None, None, None


class _AllGather(torch.autograd.Function):
    """Images of all ranks, in rank order; an image's gradient is the sum of what all ranks have for it."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        gathered = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, features.contiguous())
        ctx.images = len(features)
        return torch.cat(gathered)  # [R B, N, D]

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank() * ctx.images :][: ctx.images]


def _world_size(scope: str) -> int:
    return dist.get_world_size() if scope == "global" and dist.is_available() and dist.is_initialized() else 1


def _eager(features: Tensor, mode: str, temperature: float, ranks: int) -> Tensor:
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    others = None
    if ranks > 1:
        B, first = len(features), dist.get_rank() * len(features)
        everyone = _AllGather.apply(features)
        others = torch.cat([everyone[:first], everyone[first + B :]])  # [(R - 1) B, N, D]
    with torch.autocast(features.device.type, enabled=False):
        return patch_contrastive_loss_reference(features, mode, temperature, others)


def _check(features: Tensor, mode: str, temperature: float, reduction: str, scope: str) -> None:
    for name, value, known in (
        ("mode", mode, _MODES),
        ("reduction", reduction, _REDUCTIONS),
        ("scope", scope, _SCOPES),
    ):
        if value not in known:
            raise ValueError(f'{_OP}: {name}="{value}" is unknown; use one of {", ".join(known)}')
    if not isinstance(features, Tensor):
        raise TypeError(f"{_OP}: features must be a tensor [B, N, D] (got {type(features).__name__})")
    if features.dtype not in _DTYPES:
        raise TypeError(f"{_OP}: features must be float16, bfloat16, float32 or float64 (got {features.dtype})")
    if features.dim() != 3:
        raise ValueError(f"{_OP}: features must be [B, N, D] (got shape {list(features.shape)})")
    B, N, D = features.shape
    if B * _world_size(scope) < 2 or N < 1 or D < 1:
        raise ValueError(
            f"{_OP}: needs at least two images, as the negatives of an image are the others, of at least one token "
            f"(got B={B}, N={N}, D={D}); use a larger batch or leave the loss out"
        )
    if mode == "supcon" and N < 2:
        raise ValueError(f'{_OP}: mode="supcon" needs N >= 2 tokens an image, the positives are the others (got N={N})')
    if mode == "supcon" and not 0 < temperature < float("inf"):
        raise ValueError(f"{_OP}: temperature must be positive and finite (got {temperature})")
    if mode == "paper" and temperature != _TEMPERATURE:
        raise ValueError(f'{_OP}: Eq. 5 has no temperature (got {temperature}); leave it out or use mode="supcon"')


def patch_contrastive_loss(
    features: Tensor,
    mode: str = "paper",
    *,
    temperature: float = _TEMPERATURE,
    reduction: str = "mean",
    scope: str = "local",
    impl: str | None = None,
) -> Tensor:
    """Patches of one image attract, patches of different images repel each other.

    ``mode="paper"`` is Eq. 5 of "Pre-Trained Image Processing Transformer" (CVPR 2021), with f[j, i] token i of image
    j and d the cosine similarity; it has no temperature and may be negative; random features give about log(B - 1)::

        1/(B N^2) * sum_{j, i1, i2} [ log sum_{k != j} exp d(f[j, i1], f[k, i2]) - d(f[j, i1], f[j, i2]) ]

    ``mode="supcon"`` is the loss of the authors' MindSpore training code (research/cv/IPT/src/loss.py): with
    s = d / temperature, the mean over all B N patches of ``log sum_{all other B N - 1 patches} exp s - mean of s over
    the N - 1 other patches of the same image``.

    Args:
        features: [B, N, D] float16, bfloat16, float32 or float64, any strides; tokens need not be normalised. A token
            of norm zero (up to 1e-12) has cosine similarity 0 with everything and gets a zero gradient.
        mode: "paper" or "supcon".
        temperature: of mode "supcon" only.
        reduction: "none" gives the values per image [B], each the mean over that image's pairs; "mean" (Eq. 5 as
            written) and "sum" are taken over the images.
        scope: "local" takes the negatives from this process's batch, "global" from all ranks' batches, which must have
            the same shape. The anchors are always the own images, so "mean" is this rank's share: the mean over ranks
            is the loss of one process that holds the whole batch, and the gradients are exact in the same sense:
            averaged over ranks, as DistributedDataParallel does, they are the gradients of that one process.
            Without a process group the two are the same. Every rank must call forward and backward.
        impl: backend, see ``backend_status``; None chooses.

    Returns:
        A scalar, or [B] for "none"; float32 for half precisions, otherwise the dtype of ``features``. Features that
        hold nan or inf make it nan.

    Raises:
        ValueError: a batch of one image (over all ranks in scope), features of wrong rank, or an unknown name.
        TypeError: features are no floating-point tensor.
        RuntimeError: the backend asked for cannot serve the call.
    """
    _check(features, mode, temperature, reduction, scope)
    backend, ranks = _choose(impl, str(features.device), features.dtype, mode, temperature), _world_size(scope)
    if backend == "eager":
        per_image = _eager(features, mode, temperature, ranks)  # [B]
    else:
        per_image = _Fused.apply(features, mode, temperature, ranks, backend)
    if reduction == "none":
        return per_image
    return per_image.mean() if reduction == "mean" else per_image.sum()


def _why_not(
    device: str, dtype: torch.dtype | None = None, mode: str = "paper", temperature: float = _TEMPERATURE
) -> dict[str, str | None]:
    kind = torch.device(device).type
    cpu = None if kind == "cpu" else f"serves CPU tensors (found {kind})"
    if mode == "supcon" and temperature < _MIN_TEMPERATURE:
        cpu = cpu or f"needs temperature >= {_MIN_TEMPERATURE} (got {temperature})"
    triton = triton_missing(device)
    if triton is None and dtype == torch.float64:
        triton = "has no float64 kernel"
    if triton is None and mode != "paper":
        triton = f'has a kernel for mode "paper" only (got "{mode}")'
    return (
        {"cpu": cpu, "triton": triton, "eager": None}
        if kind == "cpu"
        else {"triton": triton, "cpu": cpu, "eager": None}
    )


def backend_status(device: torch.device | str) -> dict[str, str | None]:
    """Backend -> None where it can serve ``device``, otherwise the reason why not; in order of preference."""
    return _why_not(str(device))


@constant_to_compilers
def _choose(impl: str | None, device: str, dtype: torch.dtype, mode: str, temperature: float) -> str:
    return choose(_OP, impl, _why_not(device, dtype, mode, temperature))


__all__ = ["backend_status", "patch_contrastive_loss", "patch_contrastive_loss_reference"]
