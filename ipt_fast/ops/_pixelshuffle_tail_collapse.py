"""The algebra of pixelshuffle_tail: compose a chain of convolutions and PixelShuffles into one kernel per image class.

A chain ``conv -> PixelShuffle -> ... -> conv`` is linear, and one low-resolution cell of its output (R x R pixels)
depends on a small window of cells. Away from the border every cell has the same kernel. Near it some features that
the kernel would sum over lie outside the image, where the chain pads with zeros: those cells have kernels of their
own. Along one axis there are ``frame`` such cells at either end, so ``2 * frame + 1`` classes; a cell's class is the
pair of its row's and its column's. Whether a feature lies outside depends on its cell alone, in rows and columns
separately, so all classes share the products of weights and differ only in which of them they sum.

Few pixels and lines are concerned: a border kernel differs from the inner one for the ``pixels`` outermost lines of
the output (1 for x2 and x3, 3 for x4), where it sees the ``lines`` outermost lines of the input. So the inner kernel
serves the whole image and the differences are added at the edges; in the corners, where both add up, the rest.
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
        pixels: output lines at either end for which the border kernels differ from the inner one.
        lines: input lines at either end that the difference looks at.
    """

    scale: int
    frame: int
    reach: int
    starts: tuple[int, ...]
    width: int
    pixels: int
    lines: int
    levels: tuple[Level, ...]

    @property
    def smallest(self) -> int:
        """Cells that an image needs to have inner cells and two ends that do not overlap."""
        return max(2 * self.frame, self.lines) + 1


def axis_of(kernels: tuple[int, ...], scales: tuple[int, ...]) -> Axis:
    """Kernel sizes of all convolutions and scales of all PixelShuffles along one axis, in the order of the chain."""
    frame, reach, pixels, lines = 0, kernels[-1] // 2, 0, 0
    spans = [(-reach, reach)]  # of each output pixel of a cell: first and last cell that it sees
    levels = []
    for r, k in zip(reversed(scales), reversed(kernels[:-1]), strict=True):
        # The inner kernel takes up features outside that the chain has as zeros; these see the first k // 2 cells.
        beyond = sum(cell + lo < 0 for cell in range(reach) for lo, _ in spans)
        lines = max(k // 2, (lines - 1) // r + 1 + k // 2 if lines else 0, 1) if pixels or beyond else 0
        pixels = max(pixels, beyond)
        coarse_frame = math.ceil(reach / r)
        levels.append(_level(r, k, frame, reach, coarse_frame))
        spans = [((a + lo) // r - k // 2, (a + hi) // r + k // 2) for a in range(r) for lo, hi in spans]
        frame, reach = coarse_frame, coarse_frame + k // 2
    width = max(hi - lo + 1 for lo, hi in spans)
    starts = tuple(min(lo, reach - width + 1) + reach for lo, _ in spans)
    return Axis(math.prod(scales), frame, reach, starts, width, pixels, lines, tuple(levels))


_kept_axis_of = lru_cache(maxsize=256)(axis_of)


def axes_of(convs: Sequence[Conv], scales: Sequence[int]) -> tuple[Axis, Axis]:
    """Along rows and along columns."""
    y, x = tuple([w.shape[2] for w, _ in convs]), tuple([w.shape[3] for w, _ in convs])
    scales = tuple(scales)
    if torch.compiler.is_compiling():  # the compiler traces through lru_cache, and warns
        return axis_of(y, scales), axis_of(x, scales)
    return _kept_axis_of(y, scales), _kept_axis_of(x, scales)


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
    """The kernels of one tail, laid out for ``apply``; differentiable where the weights are. P = (C_out, R, R).

    Attributes:
        inner: [P, C, width_y, width_x], bias [P].
        rows, columns: what the edges add, for the top and bottom, left and right ``pixels`` lines:
            [2, C_out pixels R, C lines taps], bias [2, C_out pixels R, 1].
        corners: what the corners add to that: [4, C_out pixels pixels, C lines lines], bias [4, C_out pixels pixels,
            1]. None where there is no frame; biases are None where no convolution has one.
    """

    def __init__(self, convs: Sequence[Conv], scales: Sequence[int], dtype: torch.dtype):
        wide = torch.promote_types(convs[0][0].dtype, torch.float32)
        convs = [(w.to(wide), None if b is None else b.to(wide)) for w, b in convs]
        y, x = self.rows_axis, self.columns_axis = axes_of(convs, scales)
        self.out_channels = len(convs[-1][0])
        bank = compose_kernels([w for w, _ in convs], y, x)  # [classes, R, classes, R, O, C, taps, taps]
        inner = bank[y.frame, :, x.frame].permute(2, 0, 1, 3, 4, 5)  # [O, R, R, C, taps, taps]
        inner = torch.stack([k.narrow(-2, s, y.width) for k, s in zip(inner.unbind(1), y.starts, strict=True)], 1)
        inner = torch.stack([k.narrow(-1, s, x.width) for k, s in zip(inner.unbind(2), x.starts, strict=True)], 2)
        self.inner = inner.flatten(0, 2).to(dtype)
        self.rows, self.columns, self.corners = [None if k is None else k.to(dtype) for k in _frame(bank, y, x, True)]
        self.inner_bias: Tensor | None = None
        self.rows_bias: Tensor | None = None
        self.columns_bias: Tensor | None = None
        self.corners_bias: Tensor | None = None
        if any(b is not None for _, b in convs):
            bias = _class_biases(convs, scales, y, x)
            self.inner_bias = bias[y.frame, :, x.frame].permute(2, 0, 1).flatten().to(dtype)
            biases = [None if b is None else b.to(dtype) for b in _frame(bias[..., None, None, None], y, x, False)]
            self.rows_bias, self.columns_bias, self.corners_bias = biases


class ClassKernels:
    """The kernels of every class of cells, as the Triton kernel reads them.

    Attributes:
        kernels: [classes y, classes x, taps y, taps x, C, P]. bias: [classes y, classes x, P], or None.
        frame: classes at either end of rows and columns.
    """

    def __init__(self, convs: Sequence[Conv], scales: Sequence[int], dtype: torch.dtype):
        wide = torch.promote_types(convs[0][0].dtype, torch.float32)
        convs = [(w.to(wide), None if b is None else b.to(wide)) for w, b in convs]
        y, x = axes_of(convs, scales)
        self.frame, self.scale = (y.frame, x.frame), y.scale
        bank = compose_kernels([w for w, _ in convs], y, x)  # [classes, R, classes, R, O, C, taps, taps]
        self.kernels = bank.permute(0, 2, 6, 7, 5, 4, 1, 3).flatten(5).to(dtype).contiguous()
        self.bias: Tensor | None = None
        if any(b is not None for _, b in convs):
            self.bias = _class_biases(convs, scales, y, x).permute(0, 2, 4, 1, 3).flatten(2).to(dtype).contiguous()


def _class_biases(convs: Sequence[Conv], scales: Sequence[int], y: Axis, x: Axis) -> Tensor:
    """[classes, R, classes, R, O]: what the chain makes of a black image that has every class once."""
    n, m = 2 * y.frame + 1, 2 * x.frame + 1
    black = convs[0][0].new_zeros(1, convs[0][0].shape[1], n, m)
    return chain(black, convs, scales).view(-1, n, y.scale, m, x.scale).permute(1, 2, 3, 4, 0)


def _frame(bank: Tensor, y: Axis, x: Axis, seen: bool) -> list[Tensor | None]:
    """What rows, columns and corners add to the inner kernel, as described in Collapsed.

    ``bank``: [classes, R, classes, R, O, C, taps, taps]; for biases C and taps are 1, and ``seen`` is False.
    """
    rows: Tensor | None = None
    columns: Tensor | None = None
    corners: Tensor | None = None
    turned = bank.movedim((2, 3), (0, 1))  # [classes x, R, classes y, R, O, C, taps, taps]
    if y.pixels:
        ends = _ends(bank, y, -2, seen)  # [2, pixels, classes, R, O, C, lines, taps]
        rows = ends[:, :, x.frame].permute(0, 3, 1, 2, 4, 5, 6)  # [2, O, pixels, R, C, lines, taps]
        rows = rows.flatten(1, 3).flatten(2)
    if x.pixels:
        columns = _ends(turned, x, -1, seen)[:, :, y.frame]  # [2, pixels, R, O, C, taps, lines]
        columns = columns.permute(0, 3, 1, 2, 4, 6, 5).flatten(1, 3).flatten(2)
    if y.pixels and x.pixels:
        corners = _ends(ends.movedim((2, 3), (0, 1)), x, -1, seen)  # [2, pixels x, 2, pixels, O, C, lines, lines x]
        corners = corners.permute(2, 0, 4, 3, 1, 5, 6, 7).flatten(0, 1).flatten(1, 3).flatten(2)
    return [rows, columns, corners]


def _ends(bank: Tensor, axis: Axis, taps: int, seen: bool) -> Tensor:
    """[classes, R, ...] -> [2, pixels, ...]: the kernels of the border less the inner one; taps become lines."""
    inner, first, last = bank[axis.frame], bank[: axis.frame], bank[axis.frame + 1 :]
    ends = []
    for side, cells in enumerate((first, last)):
        # The first tap of border cell i lies ``offset`` lines below the first of the lines.
        offsets = [i - axis.reach + side * (axis.lines - axis.frame) for i in range(axis.frame)]
        lines = [
            _shift(cell - inner, offset, axis, taps) if seen else cell - inner
            for cell, offset in zip(cells, offsets, strict=True)
        ]
        pixels = torch.cat(lines)  # [frame R, ...]
        ends.append(pixels[: axis.pixels] if side == 0 else pixels[-axis.pixels :])
    return torch.stack(ends)


def _shift(kernel: Tensor, offset: int, axis: Axis, taps: int) -> Tensor:
    """Tap 0 to line ``offset``; where a tap falls off the lines, the kernels do not differ."""
    rest = axis.lines - offset - (2 * axis.reach + 1)
    return F.pad(kernel, (offset, rest) if taps == -1 else (0, 0, offset, rest))


def apply(x: Tensor, tail: Collapsed) -> Tensor:
    """The collapsed tail on x [B, C, H, W] with H and W of at least ``smallest``."""
    y_axis, x_axis = tail.rows_axis, tail.columns_axis
    z = F.conv2d(x, tail.inner, tail.inner_bias, padding=(y_axis.reach, x_axis.reach))  # [B, P, H + slack, W + slack]
    out = _shuffle(z, y_axis, x_axis, *x.shape[2:])  # [B, O, R H, R W]
    if tail.rows is not None:
        _add_edges(out, x, tail.rows, tail.rows_bias, y_axis, x_axis)
    if tail.columns is not None:
        _add_edges(out.transpose(2, 3), x.transpose(2, 3), tail.columns, tail.columns_bias, x_axis, y_axis)
    if tail.corners is not None:
        _add_corners(out, x, tail.corners, tail.corners_bias, y_axis, x_axis)
    return out


def _shuffle(z: Tensor, y_axis: Axis, x_axis: Axis, H: int, W: int) -> Tensor:
    """[B, O, R H, R W]: pixel (a, b) of a cell lies in z starts[a] lines further down and starts[b] to the right."""
    R = y_axis.scale
    z = z.unflatten(1, (-1, R, R))  # [B, O, R, R, H + slack, W + slack]
    B, O = z.shape[:2]
    down, right = _step(y_axis), _step(x_axis)
    if down is not None and right is not None and not z.requires_grad:
        b, o, i, j, h, w = z.stride()  # equal steps need no copy but the last
        z = z.as_strided((B, O, H, R, W, R), (b, o, h, i + down * h, w, j + right * w))
    else:
        z = torch.stack([p.narrow(-2, s, H) for p, s in zip(z.unbind(2), y_axis.starts, strict=True)], 4)
        z = torch.stack([p.narrow(-1, s, W) for p, s in zip(z.unbind(2), x_axis.starts, strict=True)], 5)
    return z.reshape(B, O, R * H, R * W)  # from [B, O, H, R, W, R]


def _step(axis: Axis) -> int | None:
    """The difference of neighbouring starts where it is the same for all and the first is 0."""
    step = axis.starts[1] if axis.scale > 1 else 0
    return step if axis.starts == tuple(a * step for a in range(axis.scale)) else None


def _add_edges(out: Tensor, x: Tensor, kernels: Tensor, bias: Tensor | None, across: Axis, along: Axis) -> None:
    """Top and bottom; left and right for transposed tensors."""
    B, _, H, W = x.shape
    R, lines, pixels = along.scale, across.lines, across.pixels
    ends = x.unfold(2, lines, H - lines).permute(2, 1, 4, 0, 3)  # [2, C, lines, B, W]
    windows = F.pad(ends, (along.reach, along.reach)).unfold(4, 2 * along.reach + 1, 1)  # [2, C, lines, B, W, taps]
    windows = windows.permute(0, 1, 2, 5, 3, 4).reshape(2, -1, B * W)
    added = _product(kernels, windows, bias).view(2, -1, pixels, R, B, W)
    added = added.permute(0, 4, 1, 2, 5, 3)  # [2, B, O, pixels, W, R]
    if out.requires_grad:
        for end, part in zip((0, R * H - pixels), added, strict=True):
            out.narrow(2, end, pixels).unflatten(3, (W, R)).add_(part)
        return
    b, o, h, w = out.stride()  # both ends at once; compilers refuse such views, but trace with gradients only
    out.as_strided(added.shape, ((R * H - pixels) * h, b, o, h, R * w, w)).add_(added)


def _add_corners(out: Tensor, x: Tensor, kernels: Tensor, bias: Tensor | None, y: Axis, x_axis: Axis) -> None:
    B, _, H, W = x.shape
    R, tall, wide = y.scale, y.pixels, x_axis.pixels
    ends = x.unfold(2, y.lines, H - y.lines).unfold(3, x_axis.lines, W - x_axis.lines)  # [B, C, 2, 2, lines, lines]
    ends = ends.permute(2, 3, 1, 4, 5, 0).reshape(4, -1, B)
    added = _product(kernels, ends, bias).view(2, 2, -1, tall, wide, B)
    added = added.permute(0, 1, 5, 2, 3, 4)  # [2, 2, B, O, tall, wide]
    down, right = R * H - tall, R * W - wide
    if out.requires_grad:
        for i in range(2):
            for j in range(2):
                out[:, :, i * down : i * down + tall, j * right : j * right + wide].add_(added[i, j])
        return
    b, o, h, w = out.stride()
    out.as_strided(added.shape, (down * h, right * w, b, o, h, w)).add_(added)


def _product(kernels: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    return kernels @ columns if bias is None else torch.baddbmm(bias, kernels, columns)
