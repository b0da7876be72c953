"""The contrastive loss between the patches of a batch (Eq. 5 of the paper), and its supervised-contrastive variant."""

from typing import NamedTuple

import torch
from torch import Tensor

from ipt_fast.ops._common import autocast_off, check_choice, check_number, check_tensor
from ipt_fast.ops._contrastive_ranks import Remote, gather_remote, ranks_in_scope
from ipt_fast.ops._patch_contrastive_loss_gemm import NO_DIRECTION, gemm_backward, gemm_forward, new_kept
from ipt_fast.ops._registry import Backend, Backends, overridable, triton_missing

_OP = "patch_contrastive_loss"
_TEMPERATURE = 0.07
_MIN_TEMPERATURE = 0.025  # exp(-2 / temperature) is still a float32 number: no maximum has to be subtracted


class _Call(NamedTuple):
    """A call, as far as it decides about backends; dtype is judged where given."""

    device: str
    dtype: torch.dtype | None = None
    mode: str = "paper"
    small_temperature: float | None = None  # below _MIN_TEMPERATURE; not any, as a dynamic compiler's is no constant


def unit_tokens(features: Tensor) -> Tensor:
    """Scale tokens to norm 1; zero tokens stay zero with a zero gradient; nan, inf and overflowing norms give nan."""
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)  # [B, N, 1]
    zero = norm <= NO_DIRECTION
    norm = norm.masked_fill(norm.isinf(), torch.nan)
    return torch.where(zero, 0.0, features / norm.masked_fill(zero, 1.0))


def patch_contrastive_loss_reference(
    features: Tensor, mode: str = "paper", temperature: float = _TEMPERATURE, others: Tensor | None = None
) -> Tensor:
    """Return values per image [B], written as Eq. 5 reads, in the dtype of ``features``; the oracle of every backend.

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
    local = log_p.reshape(B, N, -1, N).diagonal(dim1=0, dim2=2)  # [N, N, B] patches of the same image
    local = local.movedim(2, 0).masked_fill(torch.eye(N, dtype=torch.bool, device=d.device), 0.0)  # [B, N, N]
    return -local.sum((1, 2)) / (N * (N - 1))


# Backends. "eager" gives values per image [B]; the others also row statistics, which the backward takes instead of the
# cosines, and the sum of each image's unit tokens.


def _eager(features: Tensor, mode: str, temperature: float, scope: str) -> Tensor:
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    others = Remote.apply(features) if ranks_in_scope(scope) > 1 else None  # [(R - 1) B, N, D]
    with autocast_off(features):
        return patch_contrastive_loss_reference(features, mode, temperature, others)


def _triton_precision(features: Tensor) -> tuple[torch.dtype, str]:
    """Return dtype and precision of the GEMMs: float32 features follow ``torch.set_float32_matmul_precision``."""
    if features.dtype != torch.float32:
        return features.dtype, "ieee"
    allowed = torch.get_float32_matmul_precision()
    return torch.bfloat16 if allowed == "medium" else torch.float32, "tf32" if allowed == "high" else "ieee"


def _triton(features: Tensor, mode: str, temperature: float, scope: str) -> tuple[Tensor, ...]:
    from ipt_fast.kernels.patch_contrastive_loss import patch_contrastive_forward

    others = [bank for bank in gather_remote(features) if len(bank)] if ranks_in_scope(scope) > 1 else []
    sums, log_sums, token_sum = patch_contrastive_forward(features, others, *_triton_precision(features))
    return sums, (log_sums - token_sum.square().sum(1)) / features.shape[1] ** 2, token_sum


def _triton_backward(features, sums, token_sum, weights, mode, temperature, scope) -> Tensor:
    from ipt_fast.kernels.patch_contrastive_loss import Negatives, patch_contrastive_backward

    log_grad = weights / features.shape[1] ** 2  # of each log S of an image, [B]
    others: list[Negatives] = []
    if ranks_in_scope(scope) > 1:
        gathered = zip(*map(gather_remote, (features, sums[None], log_grad)), strict=True)
        others = [Negatives(*bank) for bank in gathered if len(bank[0])]
    with autocast_off(features):
        return patch_contrastive_backward(features, sums, token_sum, log_grad, others, *_triton_precision(features))


def _gemm_reason(call: _Call) -> str | None:
    if call.small_temperature is None:
        return None
    return f"needs temperature >= {_MIN_TEMPERATURE} (got {call.small_temperature})"


def _triton_reason(call: _Call) -> str | None:
    if reason := triton_missing(call.device):
        return reason
    if call.dtype == torch.float64:
        return "has no float64 kernel"
    return None if call.mode == "paper" else f'has a kernel for mode "paper" only (got "{call.mode}")'


def _preference(call: _Call) -> list[str]:
    on_cpu = torch.device(call.device).type == "cpu"  # there Triton is its interpreter
    return ["gemm", "triton", "eager"] if on_cpu else ["triton", "gemm", "eager"]


BACKENDS = Backends(
    _OP,
    _Call,
    (
        Backend("gemm", gemm_forward, gemm_backward, _gemm_reason),
        Backend("triton", _triton, _triton_backward, _triton_reason),
        Backend("eager", _eager),
    ),
    _preference,
)


# Dispatcher registration. Ranks exchange blocks inside the ops: to a compiler scope "global" is one op, too.


def _forward_fake(features, mode, temperature, scope, impl):
    B, N, D = features.shape
    wide = torch.promote_types(features.dtype, torch.float32)
    kept = new_kept(features, mode) if impl == "gemm" else features.new_empty(N, N, B, dtype=wide)
    return kept, features.new_empty(B, dtype=wide), features.new_empty(B, D, dtype=wide)


def _backward_fake(features, kept, token_sum, weights, mode, temperature, scope, impl):
    return features.new_empty(features.shape)


_HOW = "str mode, float temperature, str scope, str impl"
_forward = BACKENDS.define_forward(
    f"(Tensor features, {_HOW}) -> (Tensor kept, Tensor values, Tensor token_sum)", _forward_fake
)
_gradient = BACKENDS.define_backward(
    f"(Tensor features, Tensor kept, Tensor token_sum, Tensor weights, {_HOW}) -> Tensor", _backward_fake
)


class _PatchContrastiveLoss(torch.autograd.Function):
    """Saves the features and the row statistics."""

    generate_vmap_rule = True
    forward = staticmethod(_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        features, *ctx.options = inputs
        kept, _, token_sum = output
        ctx.save_for_backward(features, kept, token_sum)
        ctx.mark_non_differentiable(kept, token_sum)
        ctx.set_materialize_grads(False)  # no zeros for these

    @staticmethod
    def backward(ctx, _, weights, __):
        features, kept, token_sum = ctx.saved_tensors
        if weights is None:  # nobody asked the loss for its gradient
            return (None,) * 5
        return _gradient(features, kept, token_sum, weights, *ctx.options), None, None, None, None


@overridable
def patch_contrastive_loss(
    features: Tensor,
    mode: str = "paper",
    *,
    temperature: float = _TEMPERATURE,
    reduction: str = "mean",
    scope: str = "local",
    impl: str | None = None,
) -> Tensor:
    """Compute a loss in which patches of one image attract and patches of different images repel each other.

    ``mode="paper"`` is Eq. 5 of "Pre-Trained Image Processing Transformer" (CVPR 2021), with f[j, i] token i of image
    j and d the cosine similarity; it has no temperature and may be negative; random features give about log(B - 1)::

        1/(B N^2) * sum_{j, i1, i2} [ log sum_{k != j} exp d(f[j, i1], f[k, i2]) - d(f[j, i1], f[j, i2]) ]

    ``mode="supcon"`` is the loss of the authors' MindSpore training code (research/cv/IPT/src/loss.py): with
    s = d / temperature, the mean over all B N patches of ``log sum_{all other B N - 1 patches} exp s - mean of s over
    the N - 1 other patches of the same image``.

    Args:
        features: [B, N, D] float16, bfloat16, float32 or float64, any strides; tokens need not be normalised. A token
            of norm zero (up to 1e-12) has cosine similarity 0 with everything and gets a zero gradient. Where features
            hold nan or inf, or a norm overflows, the loss is nan.
        mode: "paper" or "supcon".
        temperature: of mode "supcon" only; a number, as it gets no gradient.
        reduction: "none" gives the values per image [B], each the mean over that image's pairs; "mean" (Eq. 5 as
            written) and "sum" are taken over the images.
        scope: "local" takes the negatives from this process's batch, "global" from all ranks' batches, which must have
            the same shape. The anchors are always the own images, so "mean" is this rank's share: the mean over ranks
            is the loss of one process that holds the whole batch, and the gradients are exact in the same sense:
            averaged over ranks, as DistributedDataParallel does, they are the gradients of that one process.
            Without a process group the two are the same. Every rank must call forward and backward. "gemm" passes
            a few images at a time round a ring of ranks; "triton" and "eager" gather those of all ranks.
        impl: backend, see ``backend_status``; None chooses.

    Returns:
        A scalar, or [B] for "none"; float32 for half precisions, otherwise the dtype of ``features``.

    Raises:
        ValueError: a batch of one image (over all ranks in scope), features of wrong rank, an unknown name.
        TypeError: features are no floating-point tensor, or another argument has a wrong type.
        RuntimeError: the backend asked for cannot serve the call.
    """
    _check(features, mode, temperature, reduction, scope)
    features, temperature = features.resolve_neg(), float(temperature)
    small = temperature if mode == "supcon" and temperature < _MIN_TEMPERATURE else None
    backend = BACKENDS.resolve(impl, _Call(str(features.device), features.dtype, mode, small))
    if backend.backward is None:
        per_image = backend.forward(features, mode, temperature, scope)  # [B]
    else:
        _, per_image, _ = _PatchContrastiveLoss.apply(features, mode, temperature, scope, backend.name)
    if reduction == "none":
        return per_image
    return per_image.mean() if reduction == "mean" else per_image.sum()


def _check(features: Tensor, mode: str, temperature: float, reduction: str, scope: str) -> None:
    check_tensor(_OP, "features", features, shape="[B, N, D]")
    check_choice(_OP, "mode", mode, ("paper", "supcon"))
    check_choice(_OP, "reduction", reduction, ("mean", "sum", "none"))
    check_choice(_OP, "scope", scope, ("local", "global"))
    check_number(_OP, "temperature", temperature)
    if features.dim() != 3:
        raise ValueError(f"{_OP}: features must be [B, N, D] (got shape {list(features.shape)})")
    B, N, D = features.shape
    if B * ranks_in_scope(scope) < 2 or N < 1 or D < 1:
        raise ValueError(
            f"{_OP}: needs at least two images, as the negatives of an image are the others, of at least one token "
            f"(got B={B}, N={N}, D={D}); use a larger batch or leave the loss out"
        )
    if mode == "supcon" and N < 2:
        raise ValueError(f'{_OP}: mode="supcon" needs N >= 2 tokens an image, the positives are the others (got N={N})')
    if mode == "supcon" and temperature <= 0:
        raise ValueError(f"{_OP}: temperature must be positive and finite (got {temperature})")
    if mode == "paper" and temperature != _TEMPERATURE:
        raise ValueError(f'{_OP}: Eq. 5 has no temperature (got {temperature}); leave it out or use mode="supcon"')


backend_status = BACKENDS.status
__all__ = ["backend_status", "patch_contrastive_loss", "patch_contrastive_loss_reference"]
