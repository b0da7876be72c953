"""Windows over an image of any size, and how their outputs are put together again.

Both ways of stitching are products of two one-dimensional rules: which window counts how much at which output pixel.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Stitch = Literal["blend", "official"]


@dataclass(frozen=True)
class AxisTiles:
    """The windows along one axis: where they start in the input, and their weights [windows, size * scale]."""

    starts: tuple[int, ...]
    weights: Tensor


@dataclass(frozen=True)
class Tiling:
    """The windows over an image; ``top_weights`` are the columns' weights in the first ``top`` output rows."""

    rows: AxisTiles
    columns: AxisTiles
    top: int = 0
    top_weights: Tensor | None = None

    def share(self, i: int, j: int) -> Tensor:
        """How much window (i, j) counts at each of its output pixels, [size * scale, size * scale]."""
        share = self.rows.weights[i][:, None] * self.columns.weights[j]
        if i == 0 and self.top_weights is not None:
            share[: self.top] = self.rows.weights[0, : self.top, None] * self.top_weights[j]
        return share


def tiling(height: int, width: int, size: int, scale: int, overlap: int, stitch: Stitch) -> Tiling:
    """Lay windows of ``size`` pixels over an input of at least that size, for an output ``scale`` times as large."""
    if stitch == "blend":
        return Tiling(blend_axis(height, size, scale, overlap), blend_axis(width, size, scale, overlap))
    rows, columns = official_axis(height, size, scale), official_axis(width, size, scale)
    # In the topmost rows the reference code writes the first window over its neighbours' shares, up to its right edge.
    upto = min(size * scale, _official_border(width, size, scale))
    top_weights = columns.weights.clone()
    for start, row in zip(columns.starts, top_weights, strict=True):
        row[: max(0, upto - start * scale)] = float(start == 0)
    return Tiling(rows, columns, size // 4 * scale, top_weights)


def blend_axis(length: int, size: int, scale: int, overlap: int) -> AxisTiles:
    """Windows of ``size`` pixels, evenly spread with at least ``overlap`` in common, faded into each other.

    The weight rises from a window's edge over the overlap as a squared sine, so that neither the output nor its slope
    jumps where a window begins or ends. At the image's own border the window that is there counts fully.
    """
    count = max(1, math.ceil((length - overlap) / (size - overlap)))
    starts = tuple(round(i * (length - size) / max(1, count - 1)) for i in range(count))
    if count == 1:
        return AxisTiles(starts, torch.ones(1, size * scale))
    common = size - max(b - a for a, b in itertools.pairwise(starts))
    place = torch.arange(size * scale, dtype=torch.float64) + 0.5
    distance = torch.minimum(place, size * scale - place)
    fade = (distance / max(common * scale, 1)).clamp(max=1)
    weights = (torch.sin(fade * math.pi / 2) ** 2).expand(count, -1).clone()
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
