"""The algebra of pixelshuffle_tail: compose a chain of convolutions and PixelShuffles into one kernel per image class.

A chain ``conv -> PixelShuffle -> ... -> conv`` is linear, and one low-resolution cell of its output (R x R pixels)
depends on a small window of cells. Away from the border every cell has the same kernel. Near it some features that
the kernel would sum over lie outside the image, where the chain pads with zeros: those cells have kernels of their
own. Along one axis there are ``frame`` such cells at either end, so ``2 * frame + 1`` classes; a cell's class is the
pair of its row's and its column's. Whether a feature lies outside depends on its cell alone, in rows and columns
separately, so all classes share the products of weights and differ only in which of them they sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Conv = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Level:
    """One PixelShuffle(r) and the convolution before it, along one axis: from kernels on the fine grid to the coarse.

    Attributes:
        classes, taps: of the coarse kernels.
        picks: [r * E] for each sub-position s of a cell, the E pairs (class, tap) of the fine kernels that meet a
            feature at s, as the index class * taps + tap.
        sums: ones and zeros [classes * r * taps, r * E * k]: which products (pick, tap of the convolution) are
            summed to (class, sub-position of the output, tap) of the coarse kernels.
    """

    r: int
    classes: int
    taps: int
    picks: tuple[int, ...]
    sums: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Axis:
    """What collapsing does along one axis.

    Attributes:
        scale: R, output pixels a cell.
        frame: cells at either end that have kernels of their own; classes = 2 * frame + 1.
        reach: cells that a cell's kernel sees to either side; taps = 2 * reach + 1.
        starts: [R] for each output pixel of an inner cell, the first of ``width`` taps beyond which all are zero.
        width: taps that any output pixel of an inner cell needs.
    """

    scale: int
    frame: int
    reach: int
    starts: tuple[int, ...]
    width: int
    levels: tuple[Level, ...]

    @property
    def depth(self) -> int:
        """Lines of the strip that the border cells of one end see."""
        return self.frame + self.reach

    @property
    def smallest(self) -> int:
        """Cells that an image needs to have inner cells and two ends that do not overlap."""
        return max(2 * self.frame + 1, self.depth)


@lru_cache(maxsize=256)
def axis_of(kernels: tuple[int, ...], scales: tuple[int, ...]) -> Axis:
    """Kernel sizes of all convolutions and scales of all PixelShuffles along one axis, in the order of the chain."""
    frame, reach = 0, kernels[-1] // 2
    spans = [(-reach, reach)]  # of each output pixel of a cell: first and last cell that it sees
    levels = []
    for r, k in zip(reversed(scales), reversed(kernels[:-1]), strict=True):
        coarse_frame = math.ceil(reach / r)
        levels.append(_level(r, k, frame, reach, coarse_frame))
        spans = [((a + lo) // r - k // 2, (a + hi) // r + k // 2) for a in range(r) for lo, hi in spans]
        frame, reach = coarse_frame, coarse_frame + k // 2
    width = max(hi - lo + 1 for lo, hi in spans)
    starts = tuple(min(lo, reach - width + 1) + reach for lo, _ in spans)
    return Axis(math.prod(scales), frame, reach, starts, width, tuple(levels))


def axes_of(convs: Sequence[Conv], scales: Sequence[int]) -> tuple[Axis, Axis]:
    """Along rows and along columns."""
    y, x = zip(*[w.shape[2:] for w, _ in convs], strict=True)
    return axis_of(tuple(y), tuple(scales)), axis_of(tuple(x), tuple(scales))


def _level(r: int, k: int, frame: int, reach: int, coarse_frame: int) -> Level:
    cells, taps, coarse_taps = 2 * coarse_frame + 1, 2 * reach + 1, 2 * (coarse_frame + k // 2) + 1
    length = cells * r  # the smallest image in which every class occurs once
    picks: list[list[int]] = [[] for _ in range(r)]
    terms = []  # output row (class, sub-position), cell offset, sub-position of the feature, place among its picks
    for y in range(length):
        fine_class = y if y < frame else max(frame, y - length + 2 * frame + 1)
        for t in range(-reach, reach + 1):
            if not 0 <= y + t < length:
                continue  # the chain has zeros there
            offset, s = divmod(y % r + t, r)
            pick = fine_class * taps + t + reach
            if pick not in picks[s]:
                picks[s].append(pick)
            terms.append((y, offset, s, picks[s].index(pick)))
    E = max(len(p) for p in picks)
    sums = [[0.0] * (r * E * k) for _ in range(length * coarse_taps)]
    for y, offset, s, e in terms:
        for tap in range(k):
            sums[y * coarse_taps + offset + coarse_frame + tap][(s * E + e) * k + tap] = 1.0
    padded = [p + [0] * (E - len(p)) for p in picks]  # an index that no sum takes up
    flat = tuple(i for p in padded for i in p)
    return Level(r, cells, coarse_taps, flat, tuple(map(tuple, sums)))


_TABLES: dict[tuple, tuple[Tensor, Tensor]] = {}


def _tables(level: Level, like: Tensor) -> tuple[Tensor, Tensor]:
    """``picks`` and ``sums`` as tensors, kept per device so that no training step copies them again."""
    key = (level, like.device, like.dtype)
    if not torch.compiler.is_compiling() and key in _TABLES:
        return _TABLES[key]
    with torch.inference_mode(False):  # a tensor made in inference mode could serve no later training step
        made = torch.tensor(level.picks, device=like.device), like.new_tensor(level.sums)
    if not torch.compiler.is_compiling() and type(made[0]) is Tensor:  # no FakeTensor
        _TABLES[key] = made
    return made


def compose_kernels(weights: Sequence[Tensor], rows: Axis, columns: Axis) -> Tensor:
    """The kernel of every class: [classes_y, R, classes_x, R, C_out, C_in, taps_y, taps_x], differentiable."""
    bank = weights[-1][None, None, None, None]  # [1, 1, 1, 1, O, C, k, k]
    for weight, row, column in zip(reversed(weights[:-1]), rows.levels, columns.levels, strict=True):
        bank = _compose_level(bank, weight, row, column)
    return bank


def _compose_level(bank: Tensor, weight: Tensor, row: Level, column: Level) -> Tensor:
    n, A, m, B, O, C, ty, tx = bank.shape
    r, (c_in, k, l) = row.r, weight.shape[1:]
    picks_y, sums_y = _tables(row, weight)
    picks_x, sums_x = _tables(column, weight)
    E, G = len(picks_y) // r, len(picks_x) // r
    fine = bank.permute(0, 6, 2, 7, 1, 3, 4, 5).reshape(n * ty, m * tx, A * B * O * C)
    fine = fine.index_select(0, picks_y).index_select(1, picks_x)  # [r E, r G, A B O C]
    fine = fine.view(r, E, r, G, A * B * O, C).transpose(1, 2).reshape(r, r, E * G * A * B * O, C)
    sub = weight.view(C, r, r, c_in * k * l).permute(1, 2, 0, 3)  # [r, r, C, c k l]
    products = (fine @ sub).view(r, r, E, G, A * B * O, c_in, k, l)
    products = products.permute(0, 2, 6, 1, 3, 7, 4, 5).reshape(r * E * k, r * G * l * A * B * O * c_in)
    coarse = (sums_y @ products).view(len(sums_y), r * G * l, A * B * O * c_in)
    coarse = sums_x @ coarse  # [(class, a, tap) of y, (class, b, tap) of x, A B O c]
    coarse = coarse.view(row.classes, r, row.taps, column.classes, r, column.taps, A, B, O, c_in)
    coarse = coarse.permute(0, 1, 6, 3, 4, 7, 8, 9, 2, 5)  # [classes, a, A, classes, b, B, O, c, taps, taps]
    return coarse.reshape(row.classes, r * A, column.classes, r * B, O, c_in, row.taps, column.taps)


def chain(x: Tensor, convs: Sequence[Conv], scales: Sequence[int]) -> Tensor:
    """The chain as networks write it; each convolution pads with k // 2 zeros."""
    for (weight, bias), r in zip(convs, [*scales, 1], strict=True):
        x = F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))  # [B, C r^2, h, w]
        x = F.pixel_shuffle(x, r)  # [B, C, r h, r w]
    return x


class Collapsed:
    """The kernels of one tail, laid out for ``_apply``; differentiable where the weights are. P = (C_out, R, R).

    Attributes:
        inner: of the cells off the border, [P, C, width_y, width_x], bias [P].
        rows, columns: of the top and bottom, left and right strips, [2, cells P, C depth taps], bias [2, cells P, 1].
        corners: [4, cells P, C depth depth], bias [4, cells P, 1]. Biases are None where no convolution has one.
    """

    def __init__(self, convs: Sequence[Conv], scales: Sequence[int], dtype: torch.dtype):
        wide = torch.promote_types(convs[0][0].dtype, torch.float32)
        convs = [(w.to(wide), None if b is None else b.to(wide)) for w, b in convs]
        y, x = self.rows_axis, self.columns_axis = axes_of(convs, scales)
        bank = compose_kernels([w for w, _ in convs], y, x)  # [classes, R, classes, R, O, C, taps, taps]
        bank = bank.permute(0, 2, 4, 1, 3, 5, 6, 7).to(dtype)  # [classes, classes, O, R, R, C, taps, taps]
        inner = torch.stack(
            [k.narrow(-2, s, y.width) for k, s in zip(bank[y.frame, x.frame].unbind(1), y.starts, strict=True)], 1
        )
        inner = torch.stack([k.narrow(-1, s, x.width) for k, s in zip(inner.unbind(2), x.starts, strict=True)], 2)
        self.inner = inner.flatten(0, 2)
        self.rows: Tensor | None = None
        self.columns: Tensor | None = None
        self.corners: Tensor | None = None
        if y.frame:
            self.rows = _ends(bank[:, x.frame], 0, y, -2).flatten(1, 4).flatten(2)
        if x.frame:
            self.columns = _ends(bank[y.frame], 0, x, -1).flatten(1, 4).flatten(2)
        if y.frame and x.frame:
            corners = _ends(_ends(bank, 0, y, -2), 2, x, -1)  # [2 x, cells, 2 y, cells, O, R, R, C, depth, depth]
            corners = corners.permute(2, 0, 3, 1, 4, 5, 6, 7, 8, 9)
            self.corners = corners.flatten(0, 1).flatten(1, 5).flatten(2)
        self.inner_bias: Tensor | None = None
        self.rows_bias: Tensor | None = None
        self.columns_bias: Tensor | None = None
        self.corners_bias: Tensor | None = None
        if any(b is not None for _, b in convs):
            self._compose_bias(convs, scales, dtype)

    def _compose_bias(self, convs: Sequence[Conv], scales: Sequence[int], dtype: torch.dtype) -> None:
        y, x = self.rows_axis, self.columns_axis
        n, m = 2 * y.frame + 1, 2 * x.frame + 1  # the smallest image that has every class once
        black = convs[0][0].new_zeros(1, convs[0][0].shape[1], n, m)
        bias = chain(black, convs, scales).to(dtype)  # [1, O, n R, m R]
        bias = bias.view(-1, n, y.scale, m, x.scale).permute(1, 3, 0, 2, 4).flatten(2)  # [n, m, P]
        self.inner_bias = bias[y.frame, x.frame]
        top, left = bias[: y.frame], bias[:, : x.frame]
        bottom, right = bias[y.frame + 1 :], bias[:, x.frame + 1 :]
        self.rows_bias = torch.stack([top[:, x.frame], bottom[:, x.frame]]).flatten(1).unsqueeze(2)
        self.columns_bias = torch.stack([left[y.frame], right[y.frame]]).flatten(1).unsqueeze(2)
        corners = [c for row in (top, bottom) for c in (row[:, : x.frame], row[:, x.frame + 1 :])]
        self.corners_bias = torch.stack(corners).flatten(1).unsqueeze(2)


def _ends(bank: Tensor, classes: int, axis: Axis, taps: int) -> Tensor:
    """Kernels of the border cells on the strip of ``depth`` lines that they see: [2, frame, ...] in front."""
    kernels = bank.unbind(classes)
    first = [_shift(kernels[i], i - axis.reach, axis, taps) for i in range(axis.frame)]
    last = [_shift(kernels[i + axis.frame + 1], i, axis, taps) for i in range(axis.frame)]
    return torch.stack([torch.stack(first), torch.stack(last)])


def _shift(kernel: Tensor, offset: int, axis: Axis, taps: int) -> Tensor:
    """Tap 0 to line ``offset`` of the strip; what falls off would meet the padding outside the image."""
    rest = axis.depth - offset - (2 * axis.reach + 1)
    return F.pad(kernel, (offset, rest) if taps == -1 else (0, 0, offset, rest))
