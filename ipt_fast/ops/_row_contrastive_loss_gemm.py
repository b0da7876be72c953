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

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ipt_fast.ops._common import autocast_off
from ipt_fast.ops._contrastive_blocks import HALF, add_product, chunks, length, product
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


class Passes(NamedTuple):
    """What is done to a tile x y^T [j, k] between GEMMs; ``offset`` is where its positives lie, ``spare`` memory."""

    add_sums: Callable[..., None]
    softmax_gradient: Callable[..., Tensor]
    add_losses: Callable[..., None]
    sigmoid_gradient: Callable[..., tuple[Tensor, Tensor]]


def _positives(tile: Tensor, offset: int | None) -> tuple[slice, Tensor]:
    """Return the rows of a tile whose positive is in it, and these positives, a view."""
    if offset is None:
        return slice(0, 0), tile[0, :0]
    diagonal, first = tile.diagonal(offset), max(0, -offset)
    return slice(first, first + len(diagonal)), diagonal


def _add_sums(tile: Tensor, scale: Tensor, rows: Tensor | None, columns: Tensor | None, spare: Tensor) -> None:
    """Bring maxima and sums of the exponentials of logits, [2, j] and [2, k] where asked for, up to date."""
    logits = tile.mul_(scale)
    for axis, kept in ((1, rows), (0, columns)):
        if kept is None:
            continue
        most, sums = kept
        both = torch.maximum(most, logits.amax(axis))
        terms = torch.sub(logits, both.unsqueeze(axis), out=spare).exp_()
        sums.mul_((most - both).exp_()).add_(terms.sum(axis))
        most.copy_(both)


def _softmax_gradient(
    tile: Tensor, scale: Tensor, offset: int | None, rows: Tensor, columns: Tensor, dtype: torch.dtype, spare: Tensor
) -> Tensor:
    """Return the gradient of the logits, from weights, maxima and sums of the rows [3, j] and of the columns [3, k]."""
    logits = tile.mul_(scale)
    weights, most, sums = rows.unsqueeze(2)
    by_row = torch.sub(logits, most, out=spare).exp_().mul_(weights / (2 * sums))
    at, positives = _positives(by_row, offset)
    positives.sub_(rows[0, at])
    weights, most, sums = columns
    return logits.sub_(most).exp_().mul_(weights / (2 * sums)).add_(by_row).to(dtype)


def _add_losses(tile: Tensor, scale: Tensor, bias: Tensor, offset: int | None, values: Tensor, spare: Tensor) -> None:
    """Add the sigmoid losses of the rows to ``values`` [j]; the threshold of PyTorch's default is felt in float64."""
    logits = tile.mul_(scale).add_(bias)
    _positives(logits, offset)[1].neg_()
    values += torch.ops.aten.softplus.out(logits, 1, 50, out=spare).sum(1)


def _sigmoid_gradient(
    tile: Tensor, scale: Tensor, bias: Tensor, offset: int | None, weights: Tensor, dtype: torch.dtype, spare: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the logits, from the weights of the rows [j], and its sum []."""
    logits = tile.mul_(scale).add_(bias)
    _, positives = _positives(logits, offset)
    positives.neg_()
    g = logits.sigmoid_().mul_(weights[:, None])
    positives.neg_()
    return g.to(dtype), g.sum()


TORCH = Passes(_add_sums, _softmax_gradient, _add_losses, _sigmoid_gradient)


def torch_passes() -> Passes:
    """Return passes of PyTorch's own operators."""
    return TORCH


def triton_passes() -> Passes:
    """Return the Triton kernels' passes, which read a tile once and write it once, in the backward."""
    from ipt_fast.kernels import row_contrastive_loss as kernels

    return Passes(kernels.add_sums, kernels.softmax_gradient, kernels.add_losses, kernels.sigmoid_gradient)


class _Tiles:
    """Tiles x y^T of rows of x and rows of y, in one buffer that each overwrites; beside it one more of that size."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> None:
        self.wide, self.dtype = torch.promote_types(x.dtype, torch.float32), operand_dtype(x)
        self.x, self.y = (t.to(self.dtype).contiguous() for t in (x, y))
        self.scale, self.bias = scale.to(self.wide), bias.to(self.wide)
        self.rows, self.columns = (min(len(x), n) for n in (_CPU_TILE if x.device.type == "cpu" else _TILE))
        self.memory = x.new_empty(2, self.rows * self.columns, dtype=self.wide)

    def __call__(self, x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, int | None]]:
        """Yield rows j, columns k, their tile [j, k], spare memory of its shape, and the offset of the positives."""
        own = x is self.x and y is self.y
        for j in chunks(0, len(x), self.rows):
            for k in chunks(0, len(y), self.columns):
                tile, spare = (m[: length(j) * length(k)].view(length(j), length(k)) for m in self.memory)
                yield j, k, product(x[j], y[k].t(), out=tile), spare, j.start - k.start if own else None


def gemm_forward(passes, x, y, scale, bias, mode, scope) -> tuple[Tensor, Tensor]:
    """Return what the backward needs, see ``new_kept``, and values [B]."""
    with autocast_off(x):
        tiles, kept = _Tiles(x, y, scale, bias), new_kept(x, mode)
        values = x.new_zeros(len(x), dtype=tiles.wide)
        forward = _softmax_forward if mode == "softmax" else _sigmoid_forward
        forward(passes(), tiles, kept, values, ranks_in_scope(scope))
        return kept, values


def _softmax_forward(passes: Passes, tiles: _Tiles, kept: Tensor, values: Tensor, ranks: int) -> None:
    kept[:2], kept[2:] = -torch.inf, 0.0
    (row_most, row_sums), (column_most, column_sums) = rows, columns = kept[::2], kept[1::2]
    positives = torch.empty_like(values)
    for j, k, tile, spare, offset in tiles(tiles.x, tiles.y):
        at, diagonal = _positives(tile, offset)
        positives[j][at] = diagonal * tiles.scale
        passes.add_sums(tile, tiles.scale, rows[:, j], columns[:, k], spare)
    for x, y in visitors(tiles.x, tiles.y) if ranks > 1 else ():
        for j, _, tile, spare, _ in tiles(tiles.x, y):
            passes.add_sums(tile, tiles.scale, rows[:, j], None, spare)
        for _, k, tile, spare, _ in tiles(x, tiles.y):
            passes.add_sums(tile, tiles.scale, None, columns[:, k], spare)
    values += (row_most - positives) + row_sums.log()
    values += (column_most - positives) + column_sums.log()
    values /= 2


def _sigmoid_forward(passes: Passes, tiles: _Tiles, kept: Tensor, values: Tensor, ranks: int) -> None:
    for (y,) in chain([(tiles.y,)], visitors(tiles.y) if ranks > 1 else ()):
        for j, _, tile, spare, offset in tiles(tiles.x, y):
            passes.add_losses(tile, tiles.scale, tiles.bias, offset, values[j], spare)


class _Gradients:
    """Sums of G y [B, D], G^T x [B, D] and G [].

    ``known`` [2 or 6, B] are the weights of the rows and of the columns, and what the forward kept.
    """

    def __init__(self, passes: Passes, tiles: _Tiles, known: Tensor) -> None:
        self.passes, self.tiles, self.known = passes, tiles, known
        self.x, self.y = (torch.zeros_like(t, dtype=tiles.wide) for t in (tiles.x, tiles.y))
        self.bias = self.x.new_zeros(())

    def tile_gradients(self, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Iterator[tuple]:
        """Yield rows j of x, rows k of y and G [j, k], from what is known of these rows and columns."""
        tiles = self.tiles
        for j, k, tile, spare, offset in tiles(x, y):
            if len(rows) == 3:
                known = rows[:, j], columns[:, k]
                yield j, k, self.passes.softmax_gradient(tile, tiles.scale, offset, *known, tiles.dtype, spare)
                continue
            numbers = tiles.scale, tiles.bias
            g, total = self.passes.sigmoid_gradient(tile, *numbers, offset, rows[0, j], tiles.dtype, spare)
            if x is tiles.x:  # a rank counts the rows of its own
                self.bias += total
            yield j, k, g

    def add_own(self) -> None:
        x, y = self.tiles.x, self.tiles.y
        for j, k, g in self.tile_gradients(x, y, self.known[::2], self.known[1::2]):
            add_product(self.x[j], g, y[k])
            add_product(self.y[k], g.t(), x[j])

    def add_visitor(self, x: Tensor, y: Tensor, known: Tensor) -> None:
        """Add what another rank's rows give to the gradients of this one's."""
        for j, k, g in self.tile_gradients(self.tiles.x, y, self.known[::2], known[1::2]):
            add_product(self.x[j], g, y[k])
        for j, k, g in self.tile_gradients(x, self.tiles.y, known[::2], self.known[1::2]):
            add_product(self.y[k], g.t(), x[j])


def gemm_backward(passes, x, y, scale, bias, kept, weights, mode, scope) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        grads = _Gradients(passes(), tiles, torch.cat([weights.expand(2, -1), kept]))
        grads.add_own()
        for visitor in visitors(tiles.x, tiles.y, grads.known) if ranks > 1 else ():
            grads.add_visitor(*visitor)
        back = largest / unit
        dscale = sum((grads.x[j] * tiles.x[j]).sum() for j in chunks(0, len(x), tiles.rows)) * back
        dx, dy = (g.mul_(tiles.scale * back).to(x.dtype) for g in (grads.x, grads.y))
        return dx, dy, dscale.to(scale.dtype), (grads.bias * back).to(bias.dtype)
