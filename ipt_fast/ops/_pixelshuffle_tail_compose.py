"""The algebra of pixelshuffle_tail: compose a chain of convolutions and PixelShuffles into one kernel per image class.

A chain ``conv -> PixelShuffle -> ... -> conv`` is linear, and one low-resolution cell of its output (R x R pixels)
depends on a small window of cells. Away from the border every cell has the same kernel. Near it some features that
the kernel would sum over lie outside the image, where the chain pads with zeros: those cells have kernels of their
own. Along one axis there are ``frame`` such cells at either end, so ``2 * frame + 1`` classes; a cell's class is the
pair of its row's and its column's. Whether a feature lies outside depends on its cell alone, in rows and columns
separately, so all classes share the GEMMs of weights and differ only in which results they sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipt_fast.ops._registry import constant_to_compilers

Conv = tuple[Tensor, Tensor | None]


class Level(NamedTuple):
    """One PixelShuffle(r) and the k taps of the convolution before it, along one axis: from fine kernels to coarse.

    Attributes:
        frame, reach: of the fine kernels, coarse_frame: of the coarse ones, as in Axis.
        classes, taps: of the coarse kernels; the smallest image with all classes has ``classes`` cells.
        border: of the features at one place of their cells, how many the first and the last fine class see together.
        picks: pairs of a fine class and a fine tap that meet a feature at one place of its cell.
    """

    r: int
    k: int
    frame: int
    reach: int
    coarse_frame: int
    classes: int
    taps: int
    border: int
    picks: int


@dataclass(frozen=True)
class Axis:
    """What collapsing does along one axis.

    Attributes:
        scale: R, output pixels a cell.
        frame: cells at either end that have kernels of their own; classes = 2 * frame + 1.
        reach: cells that a cell's kernel sees to either side; taps = 2 * reach + 1.
        starts: [R] for each output pixel of an inner cell, the first of ``width`` taps beyond which all are zero.
        width: taps that any output pixel of an inner cell needs.
        pixels: output lines at either end for which the border kernels differ from the inner one.
        lines: input lines at either end that the difference looks at.
        smallest: cells that an image needs to have inner cells and two ends that do not overlap.
    """

    scale: int
    frame: int
    reach: int
    starts: tuple[int, ...]
    width: int
    pixels: int
    lines: int
    levels: tuple[Level, ...]
    smallest: int


@lru_cache(maxsize=256)  # of whole numbers alone
def _axis_of(kernels: tuple[int, ...], scales: tuple[int, ...]) -> Axis:
    frame, reach, pixels, lines = 0, kernels[-1] // 2, 0, 0
    spans = [(-reach, reach)]  # of each output pixel of a cell: first and last cell that it sees
    levels = []
    for r, k in zip(reversed(scales), reversed(kernels[:-1]), strict=True):
        # The inner kernel takes up features outside that the chain has as zeros; these see the first k // 2 cells.
        beyond = sum(cell + lo < 0 for cell in range(reach) for lo, _ in spans)
        lines = max(k // 2, (lines - 1) // r + 1 + k // 2 if lines else 0, 1) if pixels or beyond else 0
        pixels = max(pixels, beyond)
        coarse_frame = math.ceil(reach / r)
        seen = frame + reach  # features at either end that a border class may see
        border = max(1, *(-((s - seen) // r) - (r - 1 - s - seen) // r for s in range(r)))
        shapes = 2 * coarse_frame + 1, 2 * (coarse_frame + k // 2) + 1, border, 2 * reach + 1 + frame * border
        levels.append(Level(r, k, frame, reach, coarse_frame, *shapes))
        spans = [((a + lo) // r - k // 2, (a + hi) // r + k // 2) for a in range(r) for lo, hi in spans]
        frame, reach = coarse_frame, coarse_frame + k // 2
    width = max(hi - lo + 1 for lo, hi in spans)
    starts = tuple(min(lo, reach - width + 1) + reach for lo, _ in spans)
    return Axis(math.prod(scales), frame, reach, starts, width, pixels, lines, tuple(levels), max(2 * frame, lines) + 1)


@constant_to_compilers
def axes_of(heights: tuple[int, ...], widths: tuple[int, ...], scales: tuple[int, ...]) -> tuple[Axis, Axis]:
    """Return what collapsing does along rows and along columns, for kernel sizes in the order of the chain."""
    return _axis_of(heights, scales), _axis_of(widths, scales)


def _tables(level: Level, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which fine kernels are taken, and which results of the convolution's weights are summed.

    Computed on ``device``: numbers from the host would be waited for, and could not be captured in a CUDA graph.

    Returns:
        picks [r E]: for each place s of a feature in its cell, the E pairs of a class and a tap of the fine kernels
        that meet a feature there, as the index class * taps + tap. ones [classes r taps, r E k]: whether pick and tap
        of the convolution belong to class, output row of the cell, and tap of the coarse kernels.
    """
    r, k, frame, reach, coarse_frame, *_ = level
    taps, length = 2 * reach + 1, level.classes * r

    def numbers(n: int, dim: int) -> Tensor:
        return torch.arange(n, device=device).view(*(-1 if i == dim else 1 for i in range(5)))

    y, coarse, s, e, tap = (numbers(n, i) for i, n in enumerate((length, level.taps, r, level.picks, k)))
    # Picks: each tap of the inner class, whose rows meet every s; then those of pairs of a first and a last class
    c, n = (e - taps) // level.border, (e - taps) % level.border
    first = s + r * n < frame + reach
    feature = torch.where(first, s + r * n, s + r * (n - level.border) + length)
    fine = torch.where(e < taps, frame, torch.where(first, c, 2 * frame - c))
    t = torch.where(e < taps, e, feature - torch.where(first, c, length - 1 - c) + reach)
    # Ones: the class of row y has that tap, and it meets a feature at s that is in the image
    seen = y + t - reach
    row = torch.where(y < frame, y, (y - length + 2 * frame + 1).clamp(min=frame))
    ones = (row == fine) & (t >= 0) & (t < taps) & (seen % r == s) & (seen >= 0) & (seen < length)
    ones = ones & (coarse == seen // r - y // r + coarse_frame + tap)  # [length, taps, r, E, k]
    return (fine * taps + t.clamp(0, taps - 1)).flatten(), ones.flatten(2).flatten(0, 1)


def compose_kernels(weights: Sequence[Tensor], rows: Axis, columns: Axis) -> Tensor:
    """Return the kernel of every class: [classes_y, R, classes_x, R, C_out, C_in, taps_y, taps_x], differentiable."""
    bank = weights[-1][None, None, None, None]  # [1, 1, 1, 1, O, C, k, k]
    for weight, row, column in zip(reversed(weights[:-1]), rows.levels, columns.levels, strict=True):
        bank = _compose_level(bank, weight, row, column)
    return bank


def composing_work(weights: Sequence[Tensor], rows: Axis, columns: Axis) -> int:
    """Return the multiplications of ``compose_kernels``."""
    total, planes = 0, len(weights[-1])
    for weight, y, x in zip(reversed(weights[:-1]), rows.levels, columns.levels, strict=True):
        r, results_y, results_x = y.r, y.r * y.picks * y.k, x.r * x.picks * x.k
        total += y.picks * x.picks * planes * weight.numel()
        total += y.classes * r * y.taps * results_x * (results_y + x.classes * r * x.taps) * planes * weight.shape[1]
        planes *= r * r
    return total


def _compose_level(bank: Tensor, weight: Tensor, row: Level, column: Level) -> Tensor:
    n, A, m, B, O, C, ty, tx = bank.shape
    r, (c_in, k, l) = row.r, weight.shape[1:]
    picks_y, sums_y = _tables(row, weight.device)
    picks_x, sums_x = (picks_y, sums_y) if column == row else _tables(column, weight.device)
    sums_y, sums_x, E, G = sums_y.to(weight.dtype), sums_x.to(weight.dtype), row.picks, column.picks
    fine = bank.permute(0, 6, 2, 7, 1, 3, 4, 5).reshape(n * ty, m * tx, A * B * O * C)
    fine = fine.index_select(0, picks_y).index_select(1, picks_x)  # [r E, r G, A B O C]
    fine = fine.view(r, E, r, G, A * B * O, C).transpose(1, 2).reshape(r, r, E * G * A * B * O, C)
    sub = weight.reshape(C, r, r, c_in * k * l).permute(1, 2, 0, 3)  # [r, r, C, c k l]
    results = (fine @ sub).view(r, r, E, G, A * B * O, c_in, k, l)
    results = results.permute(0, 2, 6, 1, 3, 7, 4, 5).reshape(r * E * k, r * G * l * A * B * O * c_in)
    coarse = (sums_y @ results).view(len(sums_y), r * G * l, A * B * O * c_in)
    coarse = sums_x @ coarse  # [(class, a, tap) of y, (class, b, tap) of x, A B O c]
    coarse = coarse.view(row.classes, r, row.taps, column.classes, r, column.taps, A, B, O, c_in)
    coarse = coarse.permute(0, 1, 6, 3, 4, 7, 8, 9, 2, 5)  # [classes, a, A, classes, b, B, O, c, taps, taps]
    return coarse.reshape(row.classes, r * A, column.classes, r * B, O, c_in, row.taps, column.taps)


def chain(x: Tensor, convs: Sequence[Conv], scales: Sequence[int]) -> Tensor:
    """Compute the chain as networks write it; each convolution pads with k // 2 zeros."""
    for (weight, bias), r in zip(convs, [*scales, 1], strict=True):
        x = F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))  # [B, C r^2, h, w]
        x = F.pixel_shuffle(x, r)  # [B, C, r h, r w]
    return x


def compose_biases(convs: Sequence[Conv], scales: Sequence[int], y: Axis, x: Axis) -> Tensor:
    """Return [classes, R, classes, R, O]: what the chain makes of a black image that has every class once."""
    n, m = 2 * y.frame + 1, 2 * x.frame + 1
    black = convs[0][0].new_zeros(1, convs[0][0].shape[1], n, m)
    return chain(black, convs, scales).view(-1, n, y.scale, m, x.scale).permute(1, 2, 3, 4, 0)


def class_kernels(convs: Sequence[Conv], scales: Sequence[int], y: Axis, x: Axis) -> tuple[Tensor, Tensor]:
    """Return the kernels of every class of cells as the Triton kernel reads them, from weights in a wide dtype.

    Kernels [classes y, classes x, taps y, taps x, C, P] and bias [classes y, classes x, P], dense.
    """
    bank = compose_kernels([w for w, _ in convs], y, x)  # [classes, R, classes, R, O, C, taps, taps]
    kernels = bank.permute(0, 2, 6, 7, 5, 4, 1, 3).flatten(5)
    bias = compose_biases(convs, scales, y, x).permute(0, 2, 4, 1, 3).flatten(2)
    return kernels.contiguous(), bias.contiguous()
