"""Sums of exponentiated cosines between images, and their gradient, in blocks that stay in the cache.

The matrix of all cosines is symmetric, so a block (images j, images k) serves j and, transposed, k: half of the
GEMMs forward, and half of the recomputed ones backward. Plain PyTorch on CPU tensors.

Mode "supcon" is the same sum with every token as an image of one token.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ipt_fast.ops import _common

NO_DIRECTION = 1e-12  # a token with a norm up to this has no direction
_ROWS = 256  # tokens in the rows of a block, where an image has no more
_BLOCK = 1 << 19  # elements of a block: more would not stay in the cache, fewer make threads wait for each other often


def _inverse_norms(features: Tensor) -> Tensor:
    """Return [B, N, 1]; 0 for zero tokens, nan where nan, inf or an overflow is in the norm."""
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return norm.masked_fill(norm.isinf(), torch.nan).reciprocal_().masked_fill_(norm <= NO_DIRECTION, 0.0)


def _wide(features: Tensor) -> Tensor:
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _unit_contiguous(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return unit tokens in ``dtype`` or at least float32; few images at once, so as to hold no wide copy."""
    unit = torch.empty(features.shape, dtype=dtype or _wide(features[:0]).dtype, device=features.device)
    for out, part in zip(unit.split(4), features.split(4), strict=True):
        wide = _wide(part)
        out.copy_(wide * _inverse_norms(wide))
    return unit


def _through_norm(g: Tensor, features: Tensor, positive_grad: Tensor) -> Tensor:
    """Turn the gradient ``g`` of unit tokens, plus [B, D] of the positives, into that of ``features``, in place."""
    for g_part, part, positive in zip(g.split(4), features.split(4), positive_grad.split(4), strict=True):
        part = _wide(part)
        inverse = _inverse_norms(part)
        unit = part * inverse
        g_part += positive[:, None]
        along = torch.einsum("bnd,bnd->bn", g_part, unit)
        g_part.addcmul_(unit, along[..., None], value=-1).mul_(inverse)
    return g


def _values_per_image(sums: Tensor, unit: Tensor, mode: str, temperature: float) -> tuple[Tensor, Tensor]:
    """Return values [B] and token sums [B, D], from the sums over the negatives; positives in closed form."""
    B, N, _ = unit.shape
    token_sum = unit.sum(1)  # [B, D]
    positives = token_sum.square().sum(1)  # of all N^2 ordered pairs
    if mode == "paper":
        return sums.log().mean((1, 2)) - positives / N**2, token_sum
    positives = positives - torch.linalg.vector_norm(unit, dim=(1, 2)) ** 2  # without a token with itself
    log_sums = sums.log().view(B, N).mean(1) + 1 / temperature
    return log_sums - positives / (N * (N - 1) * temperature), token_sum


def _chunks(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


class _Blocks:
    """P = exp((cosine - shift) / temperature) between chunks of images, in one buffer that each block overwrites.

    ``f`` are the anchors' unit tokens [B, N, D], ``others`` those of images that are negatives only [K, N, D];
    bfloat16 makes bfloat16 GEMMs. In mode "supcon" they are [B N, 1, D], as every token is its own image.
    """

    def __init__(self, features: Tensor, others: Tensor | None, mode: str, temperature: float) -> None:
        paper = mode == "paper"
        self.temperature, self.shift = (1.0, 0.0) if paper else (temperature, 1.0)
        permitted = features.dtype == torch.bfloat16 or (
            features.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
        )
        # For "supcon" the temperature makes bfloat16 GEMMs too rough.
        dtype = torch.bfloat16 if permitted and paper and _common.has_fast_bf16() else None
        others = features[:0] if others is None else others
        units = (_unit_contiguous(x, dtype) for x in (features, others))
        self.f, self.others = (u if paper else u.flatten(0, 1).unsqueeze(1) for u in units)
        _, N, _ = self.f.shape
        self.rows = max(1, _ROWS // N)
        self.columns = max(1, _BLOCK // (self.rows * N * N))
        self.buffer = self.f.new_empty(self.rows * N * max(self.rows, self.columns) * N)

    def block(self, rows: Tensor, columns: Tensor, same: bool = False) -> Tensor:
        """Return [c, N, K, N] for images [c, N, D] and [K, N, D]; ``same``: 0 of an image with itself."""
        (c, N, _), K = rows.shape, len(columns)
        p = self.buffer[: c * N * K * N].view(c * N, K * N)
        torch.mm(rows.flatten(0, 1), columns.flatten(0, 1).t(), out=p)
        if self.shift:
            p.sub_(self.shift)
        if self.temperature != 1.0:
            p.div_(self.temperature)
        p = p.exp_().view(c, N, K, N)
        if same:
            p.diagonal(dim1=0, dim2=2).zero_()
        return p

    def local(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield every pair of anchors once; blocks with equal slices hold both orders of their pairs."""
        B = len(self.f)
        for j in _chunks(0, B, self.rows):
            if j.stop - j.start > 1:
                yield j, j, self.block(self.f[j], self.f[j], same=True)
            for k in _chunks(j.stop, B, self.columns):
                yield j, k, self.block(self.f[j], self.f[k])

    def remote(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield blocks of anchors against the others."""
        for j in _chunks(0, len(self.f), self.rows):
            for k in _chunks(0, len(self.others), self.columns):
                yield j, k, self.block(self.f[j], self.others[k])


def cpu_forward(features: Tensor, others: Tensor | None, mode: str, temperature: float) -> tuple[Tensor, ...]:
    """Return S[j, i1, i2], the sums over images k != j of P[j, i1, k, i2], values [B] and token sums [B, D]."""
    with _common.autocast_off(features):
        blocks = _Blocks(features, others, mode, temperature)
        B, N, _ = blocks.f.shape
        dtype = torch.promote_types(features.dtype, torch.float32)
        sums = torch.zeros(B, N, N, dtype=dtype)
        transposed = torch.zeros_like(sums)  # what earlier images give to later ones: [k, i of the earlier, i of k]
        for j, k, p in blocks.local():
            sums[j] += p.sum(2, dtype=dtype)
            if j != k:
                transposed[k] += p.sum(0, dtype=dtype).transpose(0, 1)
        for j, _, p in blocks.remote():
            sums[j] += p.sum(2, dtype=dtype)
        sums.add_(transposed.transpose(1, 2))
        return sums, *_values_per_image(sums, _unit_contiguous(features), mode, temperature)


def cpu_backward(features, coefficients, positive_grad, others, others_coefficients, mode, temperature) -> Tensor:
    """Return the gradient of the features, from the coefficients of the sums and the gradient of the positives.

    With w the gradient of log S and coefficients = w / S, [B, N, N], token (j, i1) gets from the negatives
    ``sum_{k != j, i2} P * (coefficients[j, i1, i2] + coefficients[k, i2, i1]) * f[k, i2] / temperature``.
    """
    with _common.autocast_off(features):
        blocks = _Blocks(features, others, mode, temperature)
        f = blocks.f
        g = torch.zeros(f.shape, dtype=coefficients.dtype)  # [B, N, D]; contiguous, matmuls are added to views of it
        transposed = coefficients.transpose(1, 2).contiguous()

        def scale(p: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
            p.mul_(rows[:, :, None] + columns.transpose(0, 1))  # [c, N, 1, N] + [N, K, N]
            return p.flatten(2).flatten(0, 1)  # [c N, K N]

        def add_matmul(j: slice, w: Tensor, tokens: Tensor) -> None:
            target, tokens = g[j].flatten(0, 1), tokens.flatten(0, 1)
            if w.dtype == target.dtype:
                target.addmm_(w, tokens)
            else:
                target += w @ tokens

        for j, k, p in blocks.local():
            w = scale(p, coefficients[j], transposed[k])
            add_matmul(j, w, f[k])
            if j != k:
                add_matmul(k, w.t(), f[j])
        for j, k, p in blocks.remote():
            add_matmul(j, scale(p, coefficients[j], others_coefficients[k].transpose(1, 2)), blocks.others[k])
        if blocks.temperature != 1.0:
            g.div_(blocks.temperature)
        return _through_norm(g.view_as(features), features, positive_grad).to(features.dtype)
