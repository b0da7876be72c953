"""Sums of exponentiated cosines between images, and their gradient, in blocks that stay in the cache.

The matrix of all cosines is symmetric, so a block (images j, images k) serves j and, transposed, k: half of the
GEMMs forward, and half of the recomputed ones backward. Plain PyTorch on CPU tensors.

Mode "supcon" is the same sum with every token as an image of one token.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ipt_fast.ops import _common
from ipt_fast.ops._patch_contrastive_loss_parts import through_norm, unit_contiguous, values_per_image

_ROWS = 256  # tokens in the rows of a block, where an image has no more
_BLOCK = 1 << 19  # elements of a block: more would not stay in the cache, fewer make threads wait for each other often


def _chunks(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


class _Blocks:
    """exp((cosine - shift) / temperature) between chunks of images, in one buffer that each block overwrites."""

    def __init__(self, f: Tensor, temperature: float, shift: float) -> None:
        _, N, _ = f.shape
        self.f, self.temperature, self.shift = f, temperature, shift
        self.rows = max(1, _ROWS // N)
        self.columns = max(1, _BLOCK // (self.rows * N * N))
        self.buffer = f.new_empty(self.rows * N * max(self.rows, self.columns) * N)

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

    def remote(self, others: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield blocks of anchors against images that are no anchors here."""
        for j in _chunks(0, len(self.f), self.rows):
            for k in _chunks(0, len(others), self.columns):
                yield j, k, self.block(self.f[j], others[k])


def exp_sums(f: Tensor, others: Tensor | None, temperature: float = 1.0, shift: float = 0.0) -> Tensor:
    """Compute S[j, i1, i2] = sum over images k != j of exp((f[j, i1] . f[k, i2] - shift) / temperature).

    Args:
        f: unit tokens [B, N, D]; bfloat16 makes bfloat16 GEMMs.
        others: more images k, [K, N, D], or None.

    Returns:
        [B, N, N], float32 or float64.
    """
    B, N, _ = f.shape
    dtype = torch.float32 if f.dtype == torch.bfloat16 else f.dtype
    sums = f.new_zeros(B, N, N, dtype=dtype)
    transposed = torch.zeros_like(sums)  # what earlier images give to later ones: [k, i of the earlier, i of k]
    blocks = _Blocks(f, temperature, shift)
    for j, k, p in blocks.local():
        sums[j] += p.sum(2, dtype=dtype)
        if j != k:
            transposed[k] += p.sum(0, dtype=dtype).transpose(0, 1)
    if others is not None:
        for j, _, p in blocks.remote(others):
            sums[j] += p.sum(2, dtype=dtype)
    return sums.add_(transposed.transpose(1, 2))


def exp_sums_gradient(
    f: Tensor,
    coefficients: Tensor,
    others: Tensor | None,
    others_coefficients: Tensor | None,
    temperature: float = 1.0,
    shift: float = 0.0,
) -> Tensor:
    """Compute the gradient of sum_j w[j] * sum log S[j] for ``f``, over the images j of ``f`` and ``others``.

    With P = exp((cosine - shift) / temperature), recomputed, it is for token (j, i1)
    ``sum_{k != j, i2} P * (coefficients[j, i1, i2] + coefficients[k, i2, i1]) * f[k, i2] / temperature``.

    Args:
        f, others: as in ``exp_sums``.
        coefficients, others_coefficients: w / S of the images, [B, N, N] and [K, N, N].

    Returns:
        [B, N, D] in the dtype of ``coefficients``.
    """
    g = torch.zeros(f.shape, dtype=coefficients.dtype)  # [B, N, D]; contiguous, matmuls are added to views of it
    transposed = coefficients.transpose(1, 2).contiguous()
    blocks = _Blocks(f, temperature, shift)

    def scale(p: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        c, N, K, _ = p.shape
        p.mul_(rows[:, :, None] + columns.transpose(0, 1))  # [c, N, 1, N] + [N, K, N]
        return p.view(c * N, K * N)

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
    if others is not None and others_coefficients is not None:
        for j, k, p in blocks.remote(others):
            add_matmul(j, scale(p, coefficients[j], others_coefficients[k].transpose(1, 2)), others[k])
    return g if temperature == 1.0 else g.div_(temperature)


def _bf16_gemms(dtype: torch.dtype, mode: str) -> bool:
    """Return whether the CPU's GEMMs are to be bfloat16: for "supcon" the temperature makes them too rough."""
    permitted = dtype == torch.bfloat16 or (dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium")
    return permitted and mode == "paper" and _common.has_fast_bf16()


def _tokens_cpu(features: Tensor, mode: str) -> Tensor:
    """Return unit tokens for the GEMMs: [B, N, D], or [B N, 1, D] for "supcon", where every token is its own image."""
    unit = unit_contiguous(features, torch.bfloat16 if _bf16_gemms(features.dtype, mode) else None)
    return unit if mode == "paper" else unit.flatten(0, 1).unsqueeze(1)


def cpu_forward(features: Tensor, others: Tensor | None, mode: str, temperature: float) -> tuple[Tensor, ...]:
    """Return the sums over the negatives, values [B] and token sums [B, D]."""
    tau, shift = (1.0, 0.0) if mode == "paper" else (temperature, 1.0)
    with torch.autocast("cpu", enabled=False):
        bank = None if others is None else _tokens_cpu(others, mode)
        sums = exp_sums(_tokens_cpu(features, mode), bank, tau, shift)
        return sums, *values_per_image(sums, unit_contiguous(features), mode, temperature)


def cpu_backward(
    features: Tensor,
    coefficients: Tensor,
    positive_grad: Tensor,
    others: Tensor | None,
    others_coefficients: Tensor | None,
    mode: str,
    temperature: float,
) -> Tensor:
    """Return the gradient of the features, from the coefficients of the sums and the gradient of the positives."""
    tau, shift = (1.0, 0.0) if mode == "paper" else (temperature, 1.0)
    with torch.autocast("cpu", enabled=False):
        bank = None if others is None else _tokens_cpu(others, mode)
        f = _tokens_cpu(features, mode)
        g = exp_sums_gradient(f, coefficients, bank, others_coefficients, tau, shift)
        return through_norm(g.view_as(features), features, positive_grad).to(features.dtype)
