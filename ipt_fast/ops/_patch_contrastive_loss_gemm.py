"""Sums of exponentiated cosines between images, and their gradient, by the vendor's GEMMs in bounded memory.

The matrix of all cosines is symmetric, so a block (images j, images k) serves j and, transposed, k: half of the
GEMMs forward, and half of the recomputed ones backward. Plain PyTorch for tensors of any device.

Memory beyond features and gradient, within ``_LIMIT``: a block of cosines, the row statistics that the backward needs
(2 N^2 bytes an image for 16-bit features, 4 N^2 for float32), and float32 accumulators where the result has 16 bits.
Where these do not fit for all images they are kept for a group at a time, and blocks of two groups are computed for
each. The statistics are always kept, and go beyond the limit from 290 images of 16-bit features, 180 of float32
(N = 256).

Mode "supcon" is the same sum with every token as an image of one token.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ipt_fast.ops import _common
from ipt_fast.ops._patch_contrastive_loss_ring import ranks_in_scope, visitors

NO_DIRECTION = 1e-12  # a token with a norm up to this has no direction
_LIMIT = 64_000_000  # bytes
_PART = 1 << 18  # elements that are widened at once
_HALF = (torch.float16, torch.bfloat16)


def kept_dtype(dtype: torch.dtype, mode: str) -> torch.dtype:
    """Return the dtype of the row statistics: within [1 / e, e] in mode "paper", so float16 is as good as features."""
    return torch.float16 if dtype in _HALF and mode == "paper" else torch.promote_types(dtype, torch.float32)


def product_dtype(features: Tensor, mode: str) -> torch.dtype:
    """Return the dtype of the GEMMs' operands, unit tokens and weights of at most 2 e: float16 holds these best.

    Float32 features follow ``torch.set_float32_matmul_precision``; float16 has the mantissa of TF32.
    """
    wide, allowed = torch.promote_types(features.dtype, torch.float32), torch.get_float32_matmul_precision()
    if features.device.type == "cuda":
        return torch.float16 if features.dtype in _HALF or (wide == torch.float32 and allowed != "highest") else wide
    permitted = features.dtype == torch.bfloat16 or (features.dtype == torch.float32 and allowed == "medium")
    # For "supcon" the temperature makes bfloat16 GEMMs too rough.
    rough = features.device.type == "cpu" and permitted and mode == "paper" and _common.has_fast_bf16()
    return torch.bfloat16 if rough else wide


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a b: of float16 in float32, of others in their own dtype."""
    if a.dtype == torch.float16:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a, b, out=out)


def _add_product(target: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b to ``target`` [c, N, D], which is dense."""
    rows, b = target.flatten(0, 1), b.flatten(0, 1)
    if a.dtype == rows.dtype:
        rows.addmm_(a, b)
    else:
        rows += _product(a, b)


def _chunks(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _parts(features: Tensor) -> Iterator[slice]:
    images, N, D = features.shape
    return _chunks(0, images, max(1, _PART // (N * D)))


def _inside(group: slice, images: slice) -> slice:
    return slice(images.start - group.start, images.stop - group.start)


class _Sizes(NamedTuple):
    """How much is done at once, in images; ``held``: unit tokens of all images are in memory."""

    rows: int
    columns: int
    group: int
    held: bool


def _sizes(features: Tensor, operand: torch.dtype, kept: torch.dtype, ranks: int, accumulators: int) -> _Sizes:
    """Divide ``_LIMIT``; ``accumulators``: bytes an image where the result cannot hold the sums itself."""
    (images, N, D), operand_bytes, half = features.shape, operand.itemsize, operand in _HALF
    # A block: more cosines would not stay in a CPU's cache, fewer would make threads or kernels wait often.
    tokens, elements = (256, 1 << 19) if features.device.type == "cpu" else (1024, 1 << (21 if half else 20))
    rows = max(1, min(images, tokens // N))
    columns = max(1, min(images, elements // (rows * N * N)))
    cosines = rows * N * max(rows, columns) * N
    free = _LIMIT - cosines * (4 + operand_bytes) - images * N * N * kept.itemsize
    # A block's unit tokens, its sums or its product before they are added, and the statistics of its rows
    free -= (rows + columns) * N * D * operand_bytes
    free -= max(rows, columns) * N * max(half * D, N) * 4 + 2 * rows * N * N * 4
    if ranks > 1:  # two blocks on their way
        free -= 2 * images * N * (D * features.itemsize + N * kept.itemsize)
    group = images if accumulators * images <= max(free, 0) else max(rows, free // accumulators)
    return _Sizes(rows, columns, group, images * N * D * operand_bytes <= free - group * accumulators)


class _Tokens:
    """Unit tokens of a range of images, [c, N, D] in the dtype of the GEMMs."""

    def __init__(self, features: Tensor, dtype: torch.dtype, held: bool) -> None:
        self.features, self.dtype = features, dtype
        # [images, N, 1]; 0 for zero tokens, nan where nan, inf or an overflow is in the norm
        self.inverse_norms = torch.cat([self._inverse_norms(features[part]) for part in _parts(features)])
        self.unit: Tensor | None = None
        if held:
            unit = features.new_empty(features.shape, dtype=dtype)
            for part in _parts(features):
                self.make(part, unit[part])
            self.unit = unit

    @staticmethod
    def _inverse_norms(features: Tensor) -> Tensor:
        wide = torch.promote_types(features.dtype, torch.float32)
        norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True, dtype=wide)
        return norm.masked_fill(norm.isinf(), torch.nan).reciprocal_().masked_fill_(norm <= NO_DIRECTION, 0.0)

    def make(self, images: slice, out: Tensor) -> Tensor:
        return torch.mul(self.features[images], self.inverse_norms[images], out=out)

    def wide(self, images: slice) -> Tensor:
        return self.features[images] * self.inverse_norms[images]

    def __getitem__(self, images: slice) -> Tensor:
        if self.unit is not None:
            return self.unit[images]
        features = self.features[images]
        return self.make(images, features.new_empty(features.shape, dtype=self.dtype))


class _Blocks:
    """P = exp((cosine - shift) / temperature) between ranges of images, in one buffer that each block overwrites."""

    def __init__(self, features: Tensor, mode: str, temperature: float, ranks: int, backward: bool) -> None:
        paper = mode == "paper"
        self.features = features if paper else features.reshape(-1, 1, features.shape[-1])  # [images, N, D]
        self.images, self.N, self.D = self.features.shape
        self.temperature, self.shift = (1.0, 0.0) if paper else (temperature, 1.0)
        self.ranks, self.wide = ranks, torch.promote_types(features.dtype, torch.float32)
        self.kept, self.dtype = kept_dtype(features.dtype, mode), product_dtype(features, mode)
        narrow, row = (features.dtype, self.D) if backward else (self.kept, self.N)
        accumulators = 0 if narrow == self.wide else self.N * row * self.wide.itemsize
        self.sizes = _sizes(self.features, self.dtype, self.kept, ranks, accumulators)
        self.tokens = _Tokens(self.features, self.dtype, self.sizes.held)
        size = self.sizes.rows * self.N * max(self.sizes.rows, self.sizes.columns) * self.N
        self.p = features.new_empty(size, dtype=torch.bfloat16 if self.dtype == torch.bfloat16 else self.wide)
        self.w = features.new_empty(size if backward else 0, dtype=self.dtype)
        # Row statistics are scale / sum, and their products with P a weight's size, as float16 can hold.
        self.scale = float(ranks * self.images - 1) if paper else 2.0**14

    def groups(self) -> Iterator[slice]:
        return _chunks(0, self.images, self.sizes.group)

    def accumulators(self, result: Tensor) -> Tensor:
        """Return memory for the sums of one group: ``result`` itself where it is wide, as one group has all images."""
        if result.dtype == self.wide:
            return result
        return result.new_empty(self.sizes.group, *result.shape[1:], dtype=self.wide)

    def rows(self, group: slice) -> Iterator[slice]:
        return _chunks(group.start, group.stop, self.sizes.rows)

    def banks(self, *kept: Tensor) -> Iterator[tuple[_Tokens, tuple[Tensor, ...]]]:
        """Yield the tokens of the own images and what is kept of them, then those of each other rank."""
        yield self.tokens, kept
        if self.ranks > 1:
            for features, *others in visitors(self.features, *kept):
                yield _Tokens(features, self.dtype, held=False), tuple(others)

    def columns(self, j: slice, group: slice, own: bool) -> Iterator[tuple[slice, bool]]:
        """Yield the ranges k of a bank that the rows j meet, and whether the block serves k, too: each pair once."""
        if not own:
            yield from ((k, False) for k in _chunks(0, self.images, self.sizes.columns))
            return
        if j.stop - j.start > 1:
            yield j, False
        yield from ((k, True) for k in _chunks(j.stop, group.stop, self.sizes.columns))
        for start, stop in ((0, group.start), (group.stop, self.images)):
            yield from ((k, False) for k in _chunks(start, stop, self.sizes.columns))

    def block(self, rows: Tensor, columns: Tensor, same: bool) -> Tensor:
        """Return [c, N, K, N] for images [c, N, D] and [K, N, D]; ``same``: 0 of an image with itself."""
        (c, N, _), K = rows.shape, len(columns)
        p = self.p[: c * N * K * N].view(c * N, K * N)
        _product(rows.flatten(0, 1), columns.flatten(0, 1).t(), out=p)
        if self.shift:
            p.sub_(self.shift)
        if self.temperature != 1.0:
            p.div_(self.temperature)
        p = p.exp_().view(c, N, K, N)
        if same:
            p.diagonal(dim1=0, dim2=2).zero_()
        return p


def gemm_forward(features: Tensor, mode: str, temperature: float, scope: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return row statistics for the backward, values [B] and sums of unit tokens [B, D].

    With S[j, i1, i2] the sum over images k != j of P[j, i1, k, i2], the statistics are scale / S[j, i2, i1].
    """
    with _common.autocast_off(features):
        blocks = _Blocks(features, mode, temperature, ranks_in_scope(scope), backward=False)
        images, N, wide = blocks.images, blocks.N, blocks.wide
        kept = features.new_empty(images, N, N, dtype=blocks.kept)
        log_means = features.new_empty(images, dtype=wide)
        accumulators = blocks.accumulators(kept)
        for group in blocks.groups():
            sums = accumulators[: group.stop - group.start].zero_()
            for tokens, _ in blocks.banks():
                own = tokens is blocks.tokens
                for j in blocks.rows(group):
                    rows = blocks.tokens[j]
                    row_sums = sums.new_zeros(len(rows), N, N)
                    for k, both in blocks.columns(j, group, own):
                        p = blocks.block(rows, tokens[k], own and k == j)
                        row_sums += p.sum(2, dtype=wide)
                        if both:
                            sums[_inside(group, k)] += p.sum(0, dtype=wide).transpose(0, 1)
                    sums[_inside(group, j)] += row_sums.transpose(1, 2)
            for j in blocks.rows(group):
                part = sums[_inside(group, j)]
                log_means[j] = part.log().mean((1, 2))
                kept[j] = part.reciprocal_().mul_(blocks.scale)
        return kept, *_values(blocks, features, log_means, mode)


def _values(blocks: _Blocks, features: Tensor, log_means: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Return values [B] and token sums [B, D], from the means of log S [images]; positives in closed form."""
    B, N, D = features.shape
    token_sum, squares = log_means.new_empty(B, D), log_means.new_empty(B)
    inverse_norms = blocks.tokens.inverse_norms.view(B, N, 1)
    for part in _parts(features):
        unit = features[part] * inverse_norms[part]
        token_sum[part], squares[part] = unit.sum(1), unit.square().sum((1, 2))
    positives = token_sum.square().sum(1)  # of all N^2 ordered pairs
    if mode == "paper":
        return log_means - positives / N**2, token_sum
    positives = (positives - squares) / (N * (N - 1))  # without a token with itself
    return log_means.view(B, N).mean(1) + (blocks.shift - positives) / blocks.temperature, token_sum


def gemm_backward(features, kept, positive_grad, weights, mode, temperature, scope) -> Tensor:
    """Return the gradient of the features, from that of the values, ``weights`` [B], and of the positives [B, D].

    With w the gradient of log S and c = w / S, token (j, i1) gets from the negatives
    ``sum_{k != j, i2} P * (c[j, i1, i2] + c[k, i2, i1]) * f[k, i2] / temperature``.
    """
    with _common.autocast_off(features):
        ranks = ranks_in_scope(scope)
        blocks = _Blocks(features, mode, temperature, ranks, backward=True)
        images, N = blocks.images, blocks.N
        # Weights relative to the largest of all ranks, so that float16 can hold whatever the loss is scaled by
        largest = weights.abs().amax()
        if ranks > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        relative = weights / largest.masked_fill(largest == 0, 1.0)
        repeats = images // len(features)  # 1, or the tokens of an image
        relative = relative.repeat_interleave(repeats)  # [images]
        # The sum over i1 and i2 is a mean: over pairs, or over tokens
        largest = largest / (blocks.scale * blocks.temperature * (repeats if repeats > 1 else N * N))
        grad = features.new_empty(blocks.features.shape)
        accumulators = blocks.accumulators(grad)
        for group in blocks.groups():
            g = accumulators[: group.stop - group.start].zero_()
            for tokens, (statistics, importance) in blocks.banks(kept, relative):
                own = tokens is blocks.tokens
                for j in blocks.rows(group):
                    rows, g_rows = blocks.tokens[j], g[_inside(group, j)]
                    c_rows = (kept[j].transpose(1, 2) * relative[j][:, None, None]).unsqueeze(2)  # [c, N, 1, N]
                    for k, both in blocks.columns(j, group, own):
                        columns = tokens[k]
                        p = blocks.block(rows, columns, own and k == j)  # [c, N, K, N]
                        w = blocks.w[: p.numel()].view(p.shape)
                        # Each product is bounded, for float16, but in mode "supcon" not the factors
                        torch.mul(p, c_rows, out=w)
                        w.addcmul_(p, statistics[k].transpose(0, 1) * importance[k][:, None])
                        w = w.flatten(2).flatten(0, 1)  # [c N, K N]
                        _add_product(g_rows, w, columns)
                        if both:
                            _add_product(g[_inside(group, k)], w.t(), rows)
            g.mul_(largest)
            for part in _parts(g):
                at = slice(group.start + part.start, group.start + part.stop)
                image = torch.arange(at.start, at.stop, device=g.device) // repeats
                total, unit = g[part].add_(positive_grad[image][:, None]), blocks.tokens.wide(at)
                # Back through the norm: what points along a token is lost
                along = torch.einsum("bnd,bnd->bn", total, unit)
                grad[at] = total.addcmul_(unit, along[..., None], value=-1).mul_(blocks.tokens.inverse_norms[at])
        return grad.view(features.shape)
