"""The logits of all pairs of rows, a tile at a time, by the vendor's GEMMs in bounded memory.

A tile, rows j of x against rows k of y, is used and overwritten. In the forward it adds to the sums of its rows and of
its columns; in the backward it is made again and turned into G, the gradient of its logits, of which G y is added to
the gradient of x and G^T x to that of y. So each of the two passes computes each logit once, and always in the same
order. Plain PyTorch for tensors of any device.

With B rows of D features this holds two tiles, four numbers a row, and, where x and y have 16 bits, float32
accumulators [B, D] of both gradients (on a CPU also x and y in float32, as it has no GEMM that sums in float32).

The softmax keeps a maximum and a sum a row and column, not their log-sum-exp: where a trained network's positive is
the maximum, what is left of ``log_sum_exp - positive`` would be the rounding of a logit of 100.

Other ranks' rows come round the ring. A logit of an own row and another rank's is computed on both ranks, as each
needs its sums: to pass these on would take a second turn round the ring.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from ipt_fast.ops._common import autocast_off
from ipt_fast.ops._contrastive_blocks import HALF, add_product, chunks, inside, length, overlap, product
from ipt_fast.ops._contrastive_ranks import ranks_in_scope, visitors
from ipt_fast.ops._registry import capability

# Rows and columns of a tile: 2 MB of float32, which a CPU's cache holds; 17 MB, so that a GPU is launched less often.
_CPU_TILE, _TILE = (256, 2048), (2048, 2048)
_FLOAT16_UNIT = 2.0**14  # of G, each element at most 1: float16 then holds 1 / B of it for any B that fits


def operand_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the GEMMs' operands: that of x where 16 bits can be multiplied with sums in float32."""
    old = x.dtype == torch.bfloat16 and (capability(x.device) or (8, 0)) < (8, 0)
    if x.dtype in HALF and x.device.type in ("cuda", "meta") and not old:
        return x.dtype
    return torch.promote_types(x.dtype, torch.float32)


def new_kept(x: Tensor, mode: str) -> Tensor:
    """Return memory for what the backward needs: maximum of each row and of each column, and their sums [4, B]."""
    return x.new_empty(4 if mode == "softmax" else 0, len(x), dtype=torch.promote_types(x.dtype, torch.float32))


class _Tiles:
    """Tiles of logits = scale x y^T + bias, in one buffer that each overwrites; beside it one more of that size."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> None:
        self.wide, self.dtype = torch.promote_types(x.dtype, torch.float32), operand_dtype(x)
        self.x, self.y = (t.to(self.dtype).contiguous() for t in (x, y))
        self.scale, self.bias = scale.to(self.wide), bias.to(self.wide)
        self.rows, self.columns = (min(len(x), n) for n in (_CPU_TILE if x.device.type == "cpu" else _TILE))
        self.memory = x.new_empty(2, self.rows * self.columns, dtype=self.wide)

    def __call__(self, x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Yield rows j, columns k, their logits [j, k] and spare memory of that shape."""
        for j in chunks(0, len(x), self.rows):
            for k in chunks(0, len(y), self.columns):
                logits, spare = (m[: length(j) * length(k)].view(length(j), length(k)) for m in self.memory)
                product(x[j], y[k].t(), out=logits)
                yield j, k, logits.mul_(self.scale).add_(self.bias), spare


def _diagonal(tile: Tensor, j: slice, k: slice) -> tuple[slice, Tensor]:
    """Return the rows whose positive is in the tile, and these positives, a view."""
    both = overlap(j, k)
    return both, tile[inside(j, both), inside(k, both)].diagonal()


def _add_sums(kept: Tensor, logits: Tensor, axis: int, spare: Tensor) -> None:
    """Bring maxima and sums of exponentials, ``kept`` [2, n], up to date with logits along ``axis``."""
    most, sums = kept
    both = torch.maximum(most, logits.amax(axis))
    terms = torch.sub(logits, both.unsqueeze(axis), out=spare).exp_()
    sums.mul_((most - both).exp_()).add_(terms.sum(axis))
    most.copy_(both)


def _pair_losses(logits: Tensor, spare: Tensor) -> Tensor:
    """Return log(1 + exp(logits)); the threshold of PyTorch's default is felt in float64."""
    return torch.ops.aten.softplus.out(logits, 1, 50, out=spare)


def gemm_forward(x, y, scale, bias, mode, scope) -> tuple[Tensor, Tensor]:
    """Return what the backward needs, see ``new_kept``, and values [B]."""
    with autocast_off(x):
        tiles, kept = _Tiles(x, y, scale, bias), new_kept(x, mode)
        values = x.new_zeros(len(x), dtype=tiles.wide)
        forward = _softmax_forward if mode == "softmax" else _sigmoid_forward
        forward(tiles, kept, values, ranks_in_scope(scope))
        return kept, values


def _softmax_forward(tiles: _Tiles, kept: Tensor, values: Tensor, ranks: int) -> None:
    kept[:2], kept[2:] = -torch.inf, 0.0
    (row_most, row_sums), (column_most, column_sums) = rows, columns = kept[::2], kept[1::2]
    positives = torch.empty_like(values)
    for j, k, logits, spare in tiles(tiles.x, tiles.y):
        both, diagonal = _diagonal(logits, j, k)
        positives[both] = diagonal
        _add_sums(rows[:, j], logits, 1, spare)
        _add_sums(columns[:, k], logits, 0, spare)
    for x, y in visitors(tiles.x, tiles.y) if ranks > 1 else ():
        for j, _, logits, spare in tiles(tiles.x, y):
            _add_sums(rows[:, j], logits, 1, spare)
        for _, k, logits, spare in tiles(x, tiles.y):
            _add_sums(columns[:, k], logits, 0, spare)
    values += (row_most - positives) + row_sums.log()
    values += (column_most - positives) + column_sums.log()
    values /= 2


def _sigmoid_forward(tiles: _Tiles, kept: Tensor, values: Tensor, ranks: int) -> None:
    for j, k, logits, spare in tiles(tiles.x, tiles.y):
        _diagonal(logits, j, k)[1].neg_()
        values[j] += _pair_losses(logits, spare).sum(1)
    for (y,) in visitors(tiles.y) if ranks > 1 else ():
        for j, _, logits, spare in tiles(tiles.x, y):
            values[j] += _pair_losses(logits, spare).sum(1)


def _gradient(logits: Tensor, rows: Tensor, columns: Tensor, spare: Tensor) -> Tensor:
    """Turn logits [j, k] into their gradient, as if no pair were a positive one.

    ``rows`` [1, j] are the weights of the values; [3, j] for the softmax: then maxima and sums, of ``columns``, too.
    """
    if len(rows) == 1:
        return logits.sigmoid_().mul_(rows.view(-1, 1))
    weights, most, sums = rows.unsqueeze(2)
    by_row = torch.sub(logits, most, out=spare).exp_().mul_(weights / (2 * sums))
    weights, most, sums = columns
    return logits.sub_(most).exp_().mul_(weights / (2 * sums)).add_(by_row)


class _Gradients:
    """Sums of G y [B, D], G^T x [B, D] and G [].

    ``known`` [2 or 6, B] are the weights of the rows and of the columns, and what the forward kept.
    """

    def __init__(self, tiles: _Tiles, known: Tensor) -> None:
        self.tiles, self.known, self.sigmoid = tiles, known, len(known) == 2
        self.x, self.y = (torch.zeros_like(t, dtype=tiles.wide) for t in (tiles.x, tiles.y))
        self.bias = self.x.new_zeros(())

    def add_own(self) -> None:
        tiles, rows, columns = self.tiles, self.known[::2], self.known[1::2]
        for j, k, logits, spare in tiles(tiles.x, tiles.y):
            both, positives = _diagonal(logits, j, k)
            if self.sigmoid:
                positives.neg_()
            g = _gradient(logits, rows[:, j], columns[:, k], spare)
            if self.sigmoid:
                positives.neg_()
                self.bias += g.sum()
            else:
                positives.sub_(self.known[0, both])
            g = g.to(tiles.dtype)
            add_product(self.x[j], g, tiles.y[k])
            add_product(self.y[k], g.t(), tiles.x[j])

    def add_visitor(self, x: Tensor, y: Tensor, known: Tensor) -> None:
        """Add what another rank's rows give to the gradients of this one's."""
        tiles, rows, columns = self.tiles, self.known[::2], self.known[1::2]
        other_rows, other_columns = known[::2], known[1::2]
        for j, k, logits, spare in tiles(tiles.x, y):
            g = _gradient(logits, rows[:, j], other_columns[:, k], spare)
            if self.sigmoid:
                self.bias += g.sum()
            add_product(self.x[j], g.to(tiles.dtype), y[k])
        for j, k, logits, spare in tiles(x, tiles.y):
            g = _gradient(logits, other_rows[:, j], columns[:, k], spare)
            add_product(self.y[k], g.to(tiles.dtype).t(), x[j])


def gemm_backward(x, y, scale, bias, kept, weights, mode, scope) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, y, scale and bias, from that of the values, ``weights`` [B].

    The gradient of scale is the sum of G (x y^T), which is that of x (G y): no pass over the tiles.
    """
    with autocast_off(x):
        ranks = ranks_in_scope(scope)
        # Weights relative to the largest of all ranks, so that float16 can hold whatever the loss is scaled by
        largest = weights.abs().amax()
        if ranks > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        tiles = _Tiles(x, y, scale, bias)
        unit = _FLOAT16_UNIT if tiles.dtype == torch.float16 else 1.0
        weights = weights * unit / largest.masked_fill(largest == 0, 1.0)
        grads = _Gradients(tiles, torch.cat([weights.expand(2, -1), kept]))
        grads.add_own()
        for visitor in visitors(tiles.x, tiles.y, grads.known) if ranks > 1 else ():
            grads.add_visitor(*visitor)
        back = largest / unit
        dscale = sum((grads.x[j] * tiles.x[j]).sum() for j in chunks(0, len(x), tiles.rows)) * back
        dx, dy = (g.mul_(tiles.scale * back).to(x.dtype) for g in (grads.x, grads.y))
        return dx, dy, dscale.to(scale.dtype), (grads.bias * back).to(bias.dtype)
