"""Windows over an image of any size, and how their outputs are put together again.

All ways of stitching are products of two one-dimensional rules: which window counts how much at which output pixel.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Stitch = Literal["blend", "official"]


@dataclass(frozen=True)
class AxisTiles:
    """The windows along one axis: where they start in the input, and their weights [windows, size * scale].

    All steps from one start to the next are equal, but for the last one, which may be shorter.
    """

    starts: tuple[int, ...]
    weights: Tensor


@dataclass(frozen=True)
class Tiling:
    """The windows over an image; ``top_weights`` are the columns' weights in the first ``top`` output rows."""

    rows: AxisTiles
    columns: AxisTiles
    size: int
    scale: int
    device: torch.device
    top: int = 0
    top_weights: Tensor | None = None

    @cached_property
    def _places(self) -> Tensor:
        """Columns of the input of each window, [windows, size]."""
        starts = torch.tensor(self.columns.starts)
        return (starts[:, None] + torch.arange(self.size)).to(self.device)

    def cut(self, strip: Tensor) -> Tensor:
        """Cut rows of the input [C, size, W] into windows, float32 [windows, C, size, size]."""
        return strip[..., self._places].permute(2, 0, 1, 3).float().contiguous()

    def stitch(self, rows: Iterable[Tensor]) -> Iterator[Tensor]:
        """Join the outputs of each row of windows [windows, C, side, side] to finished rows [C, any, W * scale]."""
        columns, shares = self.columns.weights.to(self.device), self.rows.weights.to(self.device)
        ends = *(start * self.scale for start in self.rows.starts[1:]), None
        unfinished, begin = None, 0
        for i, (outputs, end) in enumerate(zip(rows, ends, strict=True)):
            strip = self._join(columns, outputs)
            if i == 0 and self.top_weights is not None:
                strip[:, : self.top] = self._join(self.top_weights.to(self.device), outputs[..., : self.top, :])
            strip *= shares[i, :, None]
            if unfinished is not None:
                strip[:, : unfinished.shape[1]] += unfinished
            finished = strip.shape[1] if end is None else end - begin
            yield strip[:, :finished]
            unfinished, begin = strip[:, finished:], begin + finished

    def _join(self, weights: Tensor, outputs: Tensor) -> Tensor:
        """Add up windows beside each other, [windows, C, h, side] -> [C, h, W * scale].

        Every so manyth window does not touch the one before: such windows are added at once, in a fixed order.
        """
        starts, side = [start * self.scale for start in self.columns.starts], outputs.shape[3]
        joined = torch.zeros(*outputs.shape[1:3], starts[-1] + side, device=outputs.device)
        even = len(starts) - 1  # windows at equal steps
        step = starts[1] if even else side
        apart = -(-side // step)
        for k in range(min(apart, even)):
            part = outputs[k:even:apart].float().permute(1, 2, 0, 3)  # [C, h, some windows, side]
            place = joined[..., k * step :].unfold(-1, side, apart * step)[:, :, : part.shape[2]]
            place.addcmul_(part, weights[k:even:apart])
        joined[..., starts[-1] :].addcmul_(outputs[-1].float(), weights[-1])
        return joined


def tiling(
    height: int,
    width: int,
    size: int,
    scale: int,
    overlap: int,
    stitch: Stitch = "blend",
    *,
    margin: int = 0,
    device: torch.device | str = "cpu",
) -> Tiling:
    """Lay windows of ``size`` pixels over an input of at least that size, for an output ``scale`` times as large."""
    device = torch.device(device)
    if stitch == "blend":
        rows, columns = (blend_axis(side, size, scale, overlap, margin) for side in (height, width))
        return Tiling(rows, columns, size, scale, device)
    rows, columns = official_axis(height, size, scale), official_axis(width, size, scale)
    # In the topmost rows the reference code writes the first window over its neighbours' shares, up to its right edge.
    upto = min(size * scale, _official_border(width, size, scale))
    top_weights = columns.weights.clone()
    for start, row in zip(columns.starts, top_weights, strict=True):
        row[: max(0, upto - start * scale)] = float(start == 0)
    return Tiling(rows, columns, size, scale, device, size // 4 * scale, top_weights)


def blend_axis(length: int, size: int, scale: int, overlap: int, margin: int = 0) -> AxisTiles:
    """Windows of ``size`` pixels with at least ``overlap`` in common, as far apart as that lets them, faded.

    The weight is 0 within ``margin`` input pixels of a window's edge and rises from there over the rest of the overlap
    as a squared sine, so that neither the output nor its slope jumps where a window begins or ends. At the image's own
    border the window that is there counts fully. With margin = overlap / 2 each pixel comes from one window.
    """
    count = max(1, math.ceil((length - overlap) / (size - overlap)))
    if count == 1:
        return AxisTiles((0,), torch.ones(1, size * scale))
    step = math.ceil((length - size) / (count - 1))
    starts = *range(0, (count - 1) * step, step), length - size
    common = size - step
    place = torch.arange(size * scale, dtype=torch.float64) + 0.5
    rise = (common - 2 * margin) * scale
    fade = ((place - margin * scale) / rise).clamp(0, 1) if rise else (place > margin * scale).double()
    fade = torch.sin(fade * math.pi / 2) ** 2
    weights = torch.minimum(fade, fade.flip(0)).repeat(count, 1)
    weights[0] = fade.flip(0)  # nothing fades at the border of the image
    weights[-1] = fade
    return AxisTiles(starts, _normalised(starts, weights, length, scale))


def official_axis(length: int, size: int, scale: int) -> AxisTiles:
    """Place the windows of the reference code (``model/__init__.py``, forward_chop): stride ``size / 4``.

    The central half of each is averaged; the first window's near edge and what lies beyond the last whole stride come
    from one window alone.
    """
    stride = size // 4
    grid = list(range(0, length - size + 1, stride))
    inner, side = stride * scale, size * scale
    weights = torch.zeros(len(grid) + 1, side, dtype=torch.float64)
    weights[:-1, inner : side - inner] = 1
    weights[0, :inner] = 1
    border = _official_border(length, size, scale)
    for row, start in zip(weights, grid, strict=False):
        row[max(0, border - start * scale) :] = 0
    weights[-1, border - (length - size) * scale :] = 1
    starts = [*grid, length - size]
    if starts[-1] == starts[-2]:
        weights[-2] += weights[-1]
        weights, starts = weights[:-1], starts[:-1]
    return AxisTiles(tuple(starts), _normalised(tuple(starts), weights, length, scale))


def _official_border(length: int, size: int, scale: int) -> int:
    """Return the output pixel from which on only the window at the far edge counts."""
    rest = (length - size) % (size // 4)
    return (length - rest) * scale - (size - rest) * scale // 2


def _normalised(starts: tuple[int, ...], weights: Tensor, length: int, scale: int) -> Tensor:
    """Weights of all windows add up to one at every output pixel; float32."""
    total = torch.zeros(length * scale, dtype=torch.float64)
    side = weights.shape[1]
    for start, row in zip(starts, weights, strict=True):
        total[start * scale : start * scale + side] += row
    for start, row in zip(starts, weights, strict=True):
        row /= total[start * scale : start * scale + side]
    return weights.float()
