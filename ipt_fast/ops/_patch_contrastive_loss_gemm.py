"""Sums of exponentiated cosines between images, and their gradient, by the vendor's GEMMs in bounded memory.

The matrix of all cosines is symmetric, so a block (images j, images k) serves j and, transposed, k: half of the
GEMMs forward, and half of the recomputed ones backward. Plain PyTorch for tensors of any device.

Memory beyond features and gradient stays within ``_LIMIT`` at any number of images. What the sums couple are the images
at a pair of positions (i1, i2): S[:, i1, i2] and S[:, i2, i1] are the sums of the rows and of the columns of one matrix
[B, B], which no other position enters. So where something does not fit for all N positions it is held for a few:

- float32 accumulators, where the result has 16 bits: the gradient of a few positions after the other. Blocks then
  serve one of their two images.
- row statistics for the backward, kept up to ``_KEPT`` bytes (N^2 an image, of 2 bytes for 16-bit features): beyond,
  the sums of a few pairs of positions are made again when their gradient is due.

Nothing else grows with B but 4 (N + D) bytes an image, inverse norms and token sums.

Mode "supcon" is the same sum with every token as an image of one token.
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ipt_fast.ops import _common
from ipt_fast.ops._contrastive_blocks import HALF, add_product, chunks, inside, length, overlap, product
from ipt_fast.ops._contrastive_ranks import ranks_in_scope, visitors

NO_DIRECTION = 1e-12  # a token with a norm up to this has no direction
_LIMIT = 64_000_000  # bytes
_KEPT = 36_000_000  # bytes of row statistics
_VISIT = 1 << 21  # bytes of features that go round the ranks at a time
_PART = 1 << 18  # elements that are widened at once


def kept_dtype(dtype: torch.dtype, mode: str) -> torch.dtype:
    """Return the dtype of the row statistics: within [1 / e, e] in mode "paper", so float16 is as good as features."""
    return torch.float16 if dtype in HALF and mode == "paper" else torch.promote_types(dtype, torch.float32)


def new_kept(features: Tensor, mode: str) -> Tensor:
    """Return memory for row statistics [images, N, N] of features [B, N, D]; of no image where they are not kept."""
    (B, N, _), dtype = features.shape, kept_dtype(features.dtype, mode)
    if mode == "supcon":
        return features.new_empty(B * N, 1, 1, dtype=dtype)
    return features.new_empty(B if B * N * N * dtype.itemsize <= _KEPT else 0, N, N, dtype=dtype)


def product_dtype(features: Tensor, mode: str) -> torch.dtype:
    """Return the dtype of the GEMMs' operands, unit tokens and weights of at most 2 e: float16 holds these best.

    Float32 features follow ``torch.set_float32_matmul_precision``; float16 has the mantissa of TF32.
    """
    wide, allowed = torch.promote_types(features.dtype, torch.float32), torch.get_float32_matmul_precision()
    if features.device.type == "cuda":
        return torch.float16 if features.dtype in HALF or (wide == torch.float32 and allowed != "highest") else wide
    permitted = features.dtype == torch.bfloat16 or (features.dtype == torch.float32 and allowed == "medium")
    # For "supcon" the temperature makes bfloat16 GEMMs too rough.
    rough = features.device.type == "cpu" and permitted and mode == "paper" and _common.has_fast_bf16()
    return torch.bfloat16 if rough else wide


def _parts(features: Tensor) -> Iterator[slice]:
    images, N, D = features.shape
    return chunks(0, images, max(1, _PART // (N * D)))


def _even(whole: int, most: int) -> int:
    """Return the size of the fewest equal pieces of ``whole`` that have ``most`` at most."""
    return math.ceil(whole / math.ceil(whole / max(1, most)))


class _Plan(NamedTuple):
    """How much is done at once."""

    rows: int  # tokens in the rows of a block of cosines
    cosines: int  # in a block
    images: int  # whose sums are held
    positions: int  # of these images
    partners: int  # positions that they meet at a time
    held: bool  # unit tokens of all images are in memory


def _plan(features: Tensor, operand: torch.dtype, kept: Tensor, others: int, backward: bool) -> _Plan:
    """Divide ``_LIMIT``; ``others``: bytes of what the caller holds or needs besides."""
    # More cosines would not stay in a CPU's cache, fewer would make threads or kernels wait often.
    if features.device.type == "cpu":
        plans = [_divided(256, 1 << 19, features, operand, kept, others, backward)]
    else:
        sizes = (1 << 21, 1 << 20) if operand in HALF else (1 << 20,)
        plans = [_divided(1024, size, features, operand, kept, others, backward) for size in sizes]
    # In smaller blocks all positions may be done at once, so that blocks serve both of their images; or at least a few
    whole = next((plan for plan in plans if plan.positions == features.shape[1]), None)
    return whole or next((plan for plan in plans if plan.positions >= 16), plans[-1])


def _divided(
    rows: int, cosines: int, features: Tensor, operand: torch.dtype, kept: Tensor, others: int, backward: bool
) -> _Plan:
    images, N, D = features.shape
    number = torch.promote_types(features.dtype, torch.float32).itemsize
    cosines = min(max(cosines, min(N * N, 1 << 21)), (images * N) ** 2)
    widest = min(N, math.isqrt(cosines))  # positions: a block has a pair of images at least
    row_tokens, column_tokens = max(rows, widest), max(cosines // rows, widest)
    # A block and its unit tokens, its sums or statistics; backward its weights and its product before they are added
    free = _LIMIT - others - kept.nbytes - images * (N + 3) * number  # inverse norms; importance, sums of logarithms
    free -= cosines * number + (row_tokens + column_tokens) * D * operand.itemsize + _PART * number
    free -= (2 * row_tokens + column_tokens) * widest * number
    if backward:
        free -= cosines * operand.itemsize + (operand in HALF) * column_tokens * D * number
    divide = _backward_shares if backward else _forward_shares
    group, positions, partners, taken = divide(features, kept, max(free, 0), widest, rows)
    return _Plan(rows, cosines, group, positions, partners, images * N * D * operand.itemsize <= free - taken)


def _forward_shares(features: Tensor, kept: Tensor, free: int, widest: int, rows: int) -> tuple[int, int, int, int]:
    """Return images, positions and partners of a plan, and the bytes of their sums."""
    images, N, _ = features.shape
    number = torch.promote_types(features.dtype, torch.float32).itemsize
    if len(kept) == images and kept.itemsize == number:  # a place for the sums
        return images, widest, widest, 0
    if widest == N and images * N * N * number <= free:
        return images, N, N, images * N * N * number
    positions = _even(N, min(widest, math.isqrt(free // (2 * images * number))))
    return images, positions, positions, 2 * images * positions * positions * number


def _backward_shares(features: Tensor, kept: Tensor, free: int, widest: int, rows: int) -> tuple[int, int, int, int]:
    """Return images, positions and partners of a plan, and the bytes of their sums and statistics."""
    images, N, D = features.shape
    number = torch.promote_types(features.dtype, torch.float32).itemsize
    saved = len(kept) == images
    if saved and widest == N and features.itemsize == number:  # sums in the result itself
        return images, N, N, 0
    budget = free if saved else free * 3 // 4
    group, positions = images, _even(N, min(widest, budget // (images * D * number)))
    if images * positions * D * number > budget:
        group = min(images, max(1, rows // positions, budget // (positions * D * number)))
    sums = group * positions * D * number
    if saved:
        return group, positions, widest, sums
    partners = _even(N, min(widest, free // 4 // (2 * images * positions * number)))
    return group, positions, partners, sums + 2 * images * positions * partners * number


class _Tokens:
    """Unit tokens of a range of images, [c, positions, D] in the dtype of the GEMMs."""

    def __init__(self, features: Tensor, dtype: torch.dtype, held: bool) -> None:
        self.features, self.dtype = features, dtype
        # [images, N, 1]; 0 for zero tokens, nan where nan, inf or an overflow is in the norm
        wide = torch.promote_types(features.dtype, torch.float32)
        self.inverse_norms = features.new_empty(*features.shape[:2], 1, dtype=wide)
        self.unit = features.new_empty(features.shape, dtype=dtype) if held else None
        for part in _parts(features):
            self.inverse_norms[part] = self._inverse_norms(features[part])
            if self.unit is not None:
                torch.mul(features[part], self.inverse_norms[part], out=self.unit[part])

    @staticmethod
    def _inverse_norms(features: Tensor) -> Tensor:
        wide = torch.promote_types(features.dtype, torch.float32)
        norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True, dtype=wide)
        return norm.masked_fill(norm.isinf(), torch.nan).reciprocal_().masked_fill_(norm <= NO_DIRECTION, 0.0)

    def wide(self, images: slice, positions: slice) -> Tensor:
        return self.features[images, positions] * self.inverse_norms[images, positions]

    def __getitem__(self, at: tuple[slice, slice]) -> Tensor:
        if self.unit is not None:
            return self.unit[at].contiguous()
        features = self.features[at]
        return torch.mul(features, self.inverse_norms[at], out=features.new_empty(features.shape, dtype=self.dtype))


class _Blocks:
    """P = exp((cosine - shift) / temperature) between ranges of images, in one buffer that each block overwrites.

    Sums and statistics lie transposed: element [k, i2, i1] belongs to S[k, i1, i2].
    """

    def __init__(
        self, features: Tensor, mode: str, temperature: float, ranks: int, kept: Tensor, backward: bool
    ) -> None:
        paper = mode == "paper"
        self.features = features if paper else features.reshape(-1, 1, features.shape[-1])  # [images, N, D]
        self.images, self.N, self.D = self.features.shape
        self.temperature, self.shift = (1.0, 0.0) if paper else (temperature, 1.0)
        self.ranks, self.wide = ranks, torch.promote_types(features.dtype, torch.float32)
        self.dtype = product_dtype(features, mode)
        others = len(features) * self.D * self.wide.itemsize  # token sums
        self.visit = max(1, min(self.images, _VISIT // (self.N * self.D * features.itemsize)))
        if ranks > 1:  # own images, those in use as they came and as unit tokens, and those on their way
            image = self.N * (self.D * (3 * features.itemsize + self.dtype.itemsize) + 3 * self.N * kept.itemsize)
            others += self.visit * image
        self.plan = _plan(self.features, self.dtype, kept, others, backward)
        self.tokens = _Tokens(self.features, self.dtype, self.plan.held)
        size = self.plan.cosines
        self.p = features.new_empty(size, dtype=torch.bfloat16 if self.dtype == torch.bfloat16 else self.wide)
        self.w = features.new_empty(size if backward else 0, dtype=self.dtype)
        # Row statistics are scale / sum, and their products with P a weight's size, as float16 can hold.
        self.scale = float(ranks * self.images - 1) if paper else 2.0**14

    def rows(self, images: slice, positions: slice) -> Iterator[slice]:
        return chunks(images.start, images.stop, max(1, self.plan.rows // length(positions)))

    def visitors(self, positions: slice, *kept: Tensor) -> Iterator[tuple[_Tokens, slice, list[Tensor]]]:
        """Yield the other ranks' tokens at ``positions`` and what is kept of them, a few images at a time."""
        for part in chunks(0, self.images, self.visit) if self.ranks > 1 else ():
            for features, *others in visitors(self.features[part, positions], *(x[part] for x in kept)):
                yield _Tokens(features, self.dtype, held=True), slice(0, length(positions)), others

    def columns(
        self, j: slice, a: slice, b: slice, images: int, together: slice | None
    ) -> Iterator[tuple[slice, bool]]:
        """Yield ranges k of a bank of ``images`` that the rows j meet, and whether the block serves k, too.

        ``a``, ``b``: positions of the rows and of the columns. ``together``: of these images each pair comes once.
        """
        step = max(1, self.plan.cosines // max(self.plan.rows, length(a)) // length(b))
        if together is None:
            yield from ((k, False) for k in chunks(0, images, step))
            return
        if length(j) > 1:
            yield j, False
        yield from ((k, True) for k in chunks(j.stop, together.stop, step))
        for start, stop in ((0, together.start), (together.stop, images)):
            yield from ((k, False) for k in chunks(start, stop, step))

    def block(self, rows: Tensor, columns: Tensor, own: tuple[slice, slice] | None) -> Tensor:
        """Return [c, a, K, b] for images [c, a, D] and [K, b, D]; 0 of an image with itself in ``own`` ranges."""
        (c, a, _), (K, b, _) = rows.shape, columns.shape
        p = self.p[: c * a * K * b].view(c * a, K * b)
        product(rows.flatten(0, 1), columns.flatten(0, 1).t(), out=p)
        if self.shift:
            p.sub_(self.shift)
        if self.temperature != 1.0:
            p.div_(self.temperature)
        p = p.exp_().view(c, a, K, b)
        if own is not None:
            j, k = own
            both = overlap(j, k)
            p[inside(j, both), :, inside(k, both)].diagonal(dim1=0, dim2=2).zero_()
        return p

    def zeros(self, a: slice, b: slice) -> tuple[Tensor, Tensor]:
        """Return memory for sums [images, a, b] and [images, b, a]; the same if a is b."""
        ab = self.features.new_zeros(self.images, length(a), length(b), dtype=self.wide)
        return ab, ab if a == b else ab.new_zeros(self.images, length(b), length(a))

    def add_sums(self, a: slice, b: slice, ab: Tensor, ba: Tensor) -> None:
        """Add the sums at two ranges of positions to [images, a, b] and [images, b, a]; the same if a is b."""
        self._add_sums(ba, a, self.tokens, b, mirrored=ab)
        for tokens, at, _ in self.visitors(b):
            self._add_sums(ba, a, tokens, at)
        for tokens, at, _ in self.visitors(a) if a != b else ():
            self._add_sums(ab, b, tokens, at)

    def _add_sums(self, sums: Tensor, a: slice, tokens: _Tokens, b: slice, mirrored: Tensor | None = None) -> None:
        images = slice(0, self.images)
        together = images if mirrored is not None and a == b else None
        for j in self.rows(images, a):
            rows = self.tokens[j, a]
            row_sums = sums.new_zeros(len(rows), length(a), length(b))
            for k, both in self.columns(j, a, b, len(tokens.features), together):
                p = self.block(rows, tokens[k, b], None if mirrored is None else (j, k))
                row_sums += p.sum(2, dtype=self.wide)
                if mirrored is not None and (both or together is None):
                    mirrored[k] += p.sum(0, dtype=self.wide).transpose(0, 1)
            sums[j] += row_sums.transpose(1, 2)

    def statistics(self, a: slice, b: slice) -> tuple[Tensor, Tensor]:
        """Make row statistics [images, a, b] and [images, b, a] anew."""
        ab, ba = self.zeros(a, b)
        self.add_sums(a, b, ab, ba)
        ab.reciprocal_().mul_(self.scale)
        return ab, ab if a == b else ba.reciprocal_().mul_(self.scale)


def gemm_forward(features: Tensor, mode: str, temperature: float, scope: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return row statistics for the backward, values [B] and sums of unit tokens [B, D].

    With S[j, i1, i2] the sum over images k != j of P[j, i1, k, i2], the statistics are scale / S[j, i2, i1].
    """
    with _common.autocast_off(features):
        kept = new_kept(features, mode).zero_()
        blocks = _Blocks(features, mode, temperature, ranks_in_scope(scope), kept, backward=False)
        log_sums = features.new_zeros(blocks.images, dtype=blocks.wide)
        ranges = list(chunks(0, blocks.N, blocks.plan.positions))
        for i, a in enumerate(ranges):
            for b in ranges[i:]:
                _forward_pair(blocks, a, b, kept, log_sums)
        values, token_sum = _values(blocks, features, log_sums / blocks.N**2, mode)
        return kept, values, token_sum


def _forward_pair(blocks: _Blocks, a: slice, b: slice, kept: Tensor, log_sums: Tensor) -> None:
    """Add the sums of log S at two ranges of positions, and keep the statistics where ``kept`` has room for them."""
    saved = len(kept) == blocks.images
    in_place = saved and kept.dtype == blocks.wide
    ab, ba = (kept[:, a, b], kept[:, b, a]) if in_place else blocks.zeros(a, b)
    blocks.add_sums(a, b, ab, ba)
    for sums, first, second in ((ab, a, b), (ba, b, a))[: 1 if a == b else 2]:
        for j in blocks.rows(slice(0, blocks.images), b):
            log_sums[j] += sums[j].log().sum((1, 2))
            if saved:
                kept[j, first, second] = sums[j].reciprocal_().mul_(blocks.scale)


def _values(blocks: _Blocks, features: Tensor, log_means: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Return values [B] and token sums [B, D], from the means of log S [images]; positives in closed form."""
    B, N, D = features.shape
    token_sum, squares, positives = log_means.new_empty(B, D), log_means.new_empty(B), log_means.new_empty(B)
    inverse_norms = blocks.tokens.inverse_norms.view(B, N, 1)
    for part in _parts(features):
        unit = features[part] * inverse_norms[part]
        token_sum[part], squares[part] = unit.sum(1), unit.square().sum((1, 2))
        positives[part] = token_sum[part].square().sum(1)  # of all N^2 ordered pairs
    if mode == "paper":
        return log_means - positives / N**2, token_sum
    positives = (positives - squares) / (N * (N - 1))  # without a token with itself
    return log_means.view(B, N).mean(1) + (blocks.shift - positives) / blocks.temperature, token_sum


def gemm_backward(features, kept, token_sum, weights, mode, temperature, scope) -> Tensor:
    """Return the gradient of the features, from that of the values, ``weights`` [B].

    With w the gradient of log S and c = w / S, token (j, i1) gets from the negatives
    ``sum_{k != j, i2} P * (c[j, i1, i2] + c[k, i2, i1]) * f[k, i2] / temperature``.
    """
    with _common.autocast_off(features):
        ranks = ranks_in_scope(scope)
        blocks = _Blocks(features, mode, temperature, ranks, kept, backward=True)
        images, N, plan = blocks.images, blocks.N, blocks.plan
        # Weights relative to the largest of all ranks, so that float16 can hold whatever the loss is scaled by
        largest = weights.abs().amax()
        if ranks > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        relative = weights / largest.masked_fill(largest == 0, 1.0)
        repeats = images // len(features)  # 1, or the tokens of an image
        relative = relative.repeat_interleave(repeats)  # [images]
        # The sum over i1 and i2 is a mean: over pairs, or over tokens
        largest = largest / (blocks.scale * blocks.temperature * (repeats if repeats > 1 else N * N))
        pairs = N * N if mode == "paper" else repeats * (repeats - 1) * temperature
        positive = weights * (-2 / pairs)  # of the sum of an image's unit tokens, for each of them
        grad = features.new_empty(blocks.features.shape)
        whole = grad.dtype == blocks.wide and (plan.images, plan.positions) == (images, N)
        size = plan.images * plan.positions * blocks.D
        memory = grad.view(-1) if whole else grad.new_empty(size, dtype=blocks.wide)
        for group in chunks(0, images, plan.images):
            for a in chunks(0, N, plan.positions):
                shape = length(group), length(a), blocks.D
                g = memory[: math.prod(shape)].view(shape).zero_()
                for b in chunks(0, N, plan.partners):
                    _add_gradient(blocks, g, group, a, b, kept, relative)
                g.mul_(largest)
                for part in _parts(g):
                    at = slice(group.start + part.start, group.start + part.stop)
                    image = torch.arange(at.start, at.stop, device=g.device) // repeats
                    positives = (token_sum[image] * positive[image][:, None])[:, None]
                    total, unit = g[part].add_(positives), blocks.tokens.wide(at, a)
                    # Back through the norm: what points along a token is lost
                    along = torch.einsum("bnd,bnd->bn", total, unit)
                    total.addcmul_(unit, along[..., None], value=-1).mul_(blocks.tokens.inverse_norms[at, a])
                    grad[at, a] = total
        return grad.view(features.shape)


def _add_gradient(blocks: _Blocks, g: Tensor, group: slice, a: slice, b: slice, kept: Tensor, relative: Tensor) -> None:
    """Add to g [group, a, D] what the positions b of all images give."""
    ab, ba = (kept[:, a, b], kept[:, b, a]) if len(kept) == blocks.images else blocks.statistics(a, b)
    bank = blocks.tokens, b, [ab, relative]
    for tokens, at, (statistics, importance) in chain([bank], blocks.visitors(b, ab, relative)):
        own = tokens is blocks.tokens
        together = group if own and a == b else None
        for j in blocks.rows(group, a):
            rows, g_rows = blocks.tokens[j, a], g[inside(group, j)]
            c_rows = (ba[j].transpose(1, 2) * relative[j][:, None, None]).unsqueeze(2)  # [c, a, 1, b]
            for k, both in blocks.columns(j, a, b, len(tokens.features), together):
                columns = tokens[k, at]
                p = blocks.block(rows, columns, (j, k) if own else None)  # [c, a, K, b]
                w = blocks.w[: p.numel()].view(p.shape)
                # Each product is bounded, for float16, but in mode "supcon" not the factors
                torch.mul(p, c_rows, out=w)
                w.addcmul_(p, statistics[k].transpose(0, 1) * importance[k][:, None])
                w = w.flatten(2).flatten(0, 1)  # [c a, K b]
                add_product(g_rows, w, columns)
                if both:
                    add_product(g[inside(group, k)], w.t(), rows)
