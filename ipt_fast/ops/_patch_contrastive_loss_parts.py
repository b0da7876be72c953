"""What the backends of patch_contrastive_loss share: norms, positives in closed form, the other ranks' images."""

import torch
import torch.distributed as dist
from torch import Tensor

NO_DIRECTION = 1e-12  # a token with a norm up to this has no direction


def _inverse_norms(features: Tensor) -> Tensor:
    """Return [B, N, 1]; 0 for zero tokens, nan where nan, inf or an overflow is in the norm."""
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return norm.masked_fill(norm.isinf(), torch.nan).reciprocal_().masked_fill_(norm <= NO_DIRECTION, 0.0)


def _wide(features: Tensor) -> Tensor:
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def unit_contiguous(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return unit tokens in ``dtype`` or at least float32; few images at once, so as to hold no wide copy."""
    unit = torch.empty(features.shape, dtype=dtype or _wide(features[:0]).dtype, device=features.device)
    for out, part in zip(unit.split(4), features.split(4), strict=True):
        wide = _wide(part)
        out.copy_(wide * _inverse_norms(wide))
    return unit


def through_norm(g: Tensor, features: Tensor, positive_grad: Tensor) -> Tensor:
    """Turn the gradient ``g`` of unit tokens, plus [B, D] of the positives, into that of ``features``, in place."""
    for g_part, part, positive in zip(g.split(4), features.split(4), positive_grad.split(4), strict=True):
        part = _wide(part)
        inverse = _inverse_norms(part)
        unit = part * inverse
        g_part += positive[:, None]
        along = torch.einsum("bnd,bnd->bn", g_part, unit)
        g_part.addcmul_(unit, along[..., None], value=-1).mul_(inverse)
    return g


def values_per_image(sums: Tensor, unit: Tensor, mode: str, temperature: float) -> tuple[Tensor, Tensor]:
    """Return values [B] and token sums [B, D], from the sums over the negatives; positives in closed form."""
    B, N, _ = unit.shape
    token_sum = unit.sum(1)  # [B, D]
    positives = token_sum.square().sum(1)  # of all N^2 ordered pairs
    if mode == "paper":
        return sums.log().mean((1, 2)) - positives / N**2, token_sum
    positives = positives - torch.linalg.vector_norm(unit, dim=(1, 2)) ** 2  # without a token with itself
    log_sums = sums.log().view(B, N).mean(1) + 1 / temperature
    return log_sums - positives / (N * (N - 1) * temperature), token_sum


def softmax_coefficients(weights: Tensor, sums: Tensor) -> Tensor:
    """Return dL / dlogsum / sum for the sums over the negatives: [B, N, N], or [B N, 1, 1] for "supcon"."""
    B, (T, N, _) = len(weights), sums.shape
    each = weights / (N * N if T == B else T // B)
    return each.repeat_interleave(T // B)[:, None, None] / sums


def positive_gradient(weights: Tensor, token_sum: Tensor, N: int, mode: str, temperature: float) -> Tensor:
    """Return the gradient of the positives with respect to each unit token of an image, [B, D]."""
    pairs = N * N if mode == "paper" else N * (N - 1) * temperature
    return token_sum * (-2 / pairs * weights)[:, None]


def gather_ranks(x: Tensor) -> list[Tensor]:
    """Return what every rank has in place of ``x``, in rank order; without gradient."""
    gathered = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, x.detach().contiguous())
    return gathered


def gather_remote(x: Tensor) -> Tensor:
    """Return what the other ranks have in place of ``x``, joined in rank order; without gradient."""
    gathered = gather_ranks(x)
    del gathered[dist.get_rank()]
    return torch.cat(gathered)


class AllGather(torch.autograd.Function):
    """Images of all ranks, in rank order; an image's gradient is the sum of what all ranks have for it."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        ctx.images = len(features)
        return torch.cat(gather_ranks(features))  # [R B, N, D]

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank() * ctx.images :][: ctx.images]
