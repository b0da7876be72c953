"""The collapsed tail: the inner kernel serves the whole image, the differences at the border are added at the edges.

Few pixels and lines are concerned: a border kernel differs from the inner one for the ``pixels`` outermost lines of
the output (1 for x2 and x3, 3 for x4), where it sees the ``lines`` outermost lines of the input. In the corners, where
rows and columns both add, the rest is added.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipt_fast.ops._pixelshuffle_tail_compose import Axis, Conv, compose_biases, compose_kernels

Pair = tuple[Tensor, Tensor]  # a kernel and its bias


class Collapsed(NamedTuple):
    """The kernels of one tail with their biases, as ``apply_collapsed`` reads them; differentiable.

    With P = (C_out, R, R). None where there is no such edge.

    Attributes:
        inner: [P, C, width_y, width_x], bias [P].
        rows, columns: what the edges add, for the top and bottom, left and right ``pixels`` lines:
            [2, C_out pixels R, C lines taps], bias [2, C_out pixels R, 1].
        corners: what the corners add to that: [4, C_out pixels pixels, C lines lines], bias [4, C_out pixels pixels,
            1].
    """

    inner: Pair
    rows: Pair | None
    columns: Pair | None
    corners: Pair | None

    def to(self, dtype: torch.dtype) -> "Collapsed":
        """Return the kernels in ``dtype``."""
        return Collapsed(*(pair and (pair[0].to(dtype), pair[1].to(dtype)) for pair in self))  # type: ignore[arg-type]


def collapse(convs: Sequence[Conv], scales: Sequence[int], y: Axis, x: Axis) -> Collapsed:
    """Compose the kernels from weights in a wide dtype, which is the result's."""
    bank = compose_kernels([w for w, _ in convs], y, x)  # [classes, R, classes, R, O, C, taps, taps]
    inner = bank[y.frame, :, x.frame].permute(2, 0, 1, 3, 4, 5)  # [O, R, R, C, taps, taps]
    inner = torch.stack([k.narrow(-2, s, y.width) for k, s in zip(inner.unbind(1), y.starts, strict=True)], 1)
    inner = torch.stack([k.narrow(-1, s, x.width) for k, s in zip(inner.unbind(2), x.starts, strict=True)], 2)
    bias = compose_biases(convs, scales, y, x)
    inner_bias = bias[y.frame, :, x.frame].permute(2, 0, 1).flatten()
    edges = zip(_frame(bank, y, x, True), _frame(bias[..., None, None, None], y, x, False), strict=True)
    return Collapsed((inner.flatten(0, 2), inner_bias), *(None if k is None or b is None else (k, b) for k, b in edges))


def apply_collapsed(x: Tensor, tail: Collapsed, y_axis: Axis, x_axis: Axis) -> Tensor:
    """Compute the tail of x [B, C, H, W], H and W of at least ``smallest``, in the dtype of both; dense result."""
    z = F.conv2d(x, *tail.inner, padding=(y_axis.reach, x_axis.reach))  # [B, P, H + slack, W + slack]
    out = _shuffle(z, y_axis, x_axis, *x.shape[2:])  # [B, O, R H, R W]
    if tail.rows is not None:
        _add_edges(out, x, *tail.rows, y_axis, x_axis)
    if tail.columns is not None:
        _add_edges(out.transpose(2, 3), x.transpose(2, 3), *tail.columns, x_axis, y_axis)
    if tail.corners is not None:
        _add_corners(out, x, *tail.corners, y_axis, x_axis)
    return out


def _shuffle(z: Tensor, y: Axis, x: Axis, H: int, W: int) -> Tensor:
    """Return [B, O, R H, R W]: pixel (a, b) of a cell lies in z starts[a] lines further down and starts[b] right."""
    R = y.scale
    z = z.unflatten(1, (-1, R, R))  # [B, O, R, R, H + slack, W + slack]
    z = torch.stack([p.narrow(-2, s, H) for p, s in zip(z.unbind(2), y.starts, strict=True)], 4)
    z = torch.stack([p.narrow(-1, s, W) for p, s in zip(z.unbind(2), x.starts, strict=True)], 5)
    return z.flatten(4, 5).flatten(2, 3)  # from [B, O, H, R, W, R]


def _add_edges(out: Tensor, x: Tensor, kernels: Tensor, bias: Tensor, across: Axis, along: Axis) -> None:
    """Add to top and bottom; left and right for transposed tensors."""
    B, _, H, W = x.shape
    R, lines, pixels = along.scale, across.lines, across.pixels
    ends = x.unfold(2, lines, H - lines).permute(2, 1, 4, 0, 3)  # [2, C, lines, B, W]
    windows = F.pad(ends, (along.reach, along.reach)).unfold(4, 2 * along.reach + 1, 1)  # [2, C, lines, B, W, taps]
    windows = windows.permute(0, 1, 2, 5, 3, 4).reshape(2, -1, B * W)
    added = torch.baddbmm(bias, kernels, windows).view(2, -1, pixels, R, B, W)
    added = added.permute(0, 4, 1, 2, 5, 3)  # [2, B, O, pixels, W, R]
    for end, part in zip((0, R * H - pixels), added.unbind(0), strict=True):
        out.narrow(2, end, pixels).unflatten(3, (W, R)).add_(part)


def _add_corners(out: Tensor, x: Tensor, kernels: Tensor, bias: Tensor, y: Axis, x_axis: Axis) -> None:
    B, _, H, W = x.shape
    R, tall, wide = y.scale, y.pixels, x_axis.pixels
    ends = x.unfold(2, y.lines, H - y.lines).unfold(3, x_axis.lines, W - x_axis.lines)  # [B, C, 2, 2, lines, lines]
    ends = ends.permute(2, 3, 1, 4, 5, 0).reshape(4, -1, B)
    added = torch.baddbmm(bias, kernels, ends).view(4, -1, tall, wide, B).permute(0, 4, 1, 2, 3)  # [4, B, O, t, w]
    places = [(top, left) for top in (0, R * H - tall) for left in (0, R * W - wide)]
    for (top, left), part in zip(places, added.unbind(0), strict=True):
        out.narrow(2, top, tall).narrow(3, left, wide).add_(part)


def _frame(bank: Tensor, y: Axis, x: Axis, seen: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return what rows, columns and corners add to the inner kernel, as described in Collapsed.

    ``bank``: [classes, R, classes, R, O, C, taps, taps]; for biases C and taps are 1, and ``seen`` is False.
    """
    rows = columns = corners = None
    if y.pixels:
        ends = _ends(bank, y, seen)  # [2, pixels, classes x, R, O, C, lines, taps x]
        rows = ends[:, :, x.frame].permute(0, 3, 1, 2, 4, 5, 6).flatten(1, 3).flatten(2)
    if x.pixels:
        turned = _ends(_turned(bank), x, seen)  # [2, pixels, classes y, R, O, C, lines, taps y]
        columns = turned[:, :, y.frame].permute(0, 3, 1, 2, 4, 5, 6).flatten(1, 3).flatten(2)
    if y.pixels and x.pixels:
        corners = _turned(_ends(_turned(ends), x, seen))  # [2, pixels y, 2, pixels x, O, C, lines y, lines x]
        corners = corners.permute(0, 2, 4, 1, 3, 5, 6, 7).flatten(0, 1).flatten(1, 3).flatten(2)
    return rows, columns, corners


def _turned(bank: Tensor) -> Tensor:
    """Exchange rows and columns of [rows, R, columns, R, O, C, taps of rows, taps of columns]."""
    return bank.permute(2, 3, 0, 1, 4, 5, 7, 6)


def _ends(bank: Tensor, axis: Axis, seen: bool) -> Tensor:
    """Turn [classes, R, ..., taps, .] into [2, pixels, ..., lines, .]: the kernels of the border less the inner one."""
    inner, ends = bank[axis.frame], []
    for side in range(2):
        cells = bank[side * (axis.frame + 1) :][: axis.frame] - inner
        if seen:
            # The first tap of border cell i lies ``offset`` lines below the first of the lines. Where a tap falls off
            # the lines, the kernels do not differ.
            offset, slack = side * (axis.lines - axis.frame) - axis.reach, axis.lines - 2 * axis.reach - 1
            shifts = [(0, 0, offset + i, slack - offset - i) for i in range(axis.frame)]
            cells = torch.stack([F.pad(cell, shift) for cell, shift in zip(cells, shifts, strict=True)])
        pixels = cells.flatten(0, 1)  # [frame R, ...]
        ends.append(pixels[-axis.pixels :] if side else pixels[: axis.pixels])
    return torch.stack(ends)
