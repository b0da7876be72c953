"""Images that lie on a device as a whole: cut by one gather, put together by one that no order of additions can change.

Nothing here waits for the device. What it takes in launches does not grow with the number of windows; what it takes in
memory does, so that larger images go through in strips (``strips.py``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ipt_fast.io.mirror import mirror_pad
from ipt_fast.tiling.batches import Network, in_batches, in_full_batches
from ipt_fast.tiling.strips import Layout, checked
from ipt_fast.tiling.windows import AxisTiles, blend_axis

_MOST = 1 << 30  # bytes of the windows and outputs of an image, in float32


def fits_whole(layout: Layout, height: int, width: int) -> bool:
    """Return whether an image of that size may lie on a device as a whole, with its windows and their outputs."""
    if layout.blend != "blend":
        return False  # in its topmost rows the reference code stitches by another rule
    inner = layout.tile - layout.overlap
    windows = (max(height, layout.tile) // inner + 1) * (max(width, layout.tile) // inner + 1)
    return windows * 3 * layout.tile**2 * (1 + 2 * layout.scale**2) * 4 <= _MOST


def restored_whole(
    network: Network,
    images: Sequence[Tensor],
    layout: Layout,
    batch_size: int,
    progress: Callable[[float], None] | None = None,
    *,
    full: bool = False,
) -> Iterator[Tensor]:
    """Yield the result of one image [C, H, W] after the other, float32 [C', H * scale, W * scale], where they lie.

    Batches reach over images, by all windows of an image unless every batch is to be ``full``. The two ways of
    stitching differ by rounding.
    """
    shapes = [(image.shape[-2], image.shape[-1]) for image in images]
    by_shape = {(h, w): _Places.of(h, w, layout, images[0].device) for h, w in set(shapes)}
    places = [by_shape[shape] for shape in shapes]
    total = sum(place.windows for place in places)
    done = None if progress is None else lambda windows: progress(windows / total)
    cuts = zip(places, images, strict=True)
    windows = (place.cut(mirror_pad(image, layout.tile, centre=True)[0]) for place, image in cuts)
    outputs = (in_full_batches if full else in_batches)(checked(network, layout), windows, batch_size, done)
    for image, place, out in zip(images, places, outputs, strict=True):
        top, left = (max(0, layout.tile - side) // 2 * layout.scale for side in image.shape[-2:])
        height, width = (side * layout.scale for side in image.shape[-2:])
        yield place.join(out)[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class _AxisPlaces:
    """Along one axis: the pixel of each window [windows, size]; and of each output pixel the windows that reach it.

    ``window`` and ``place`` say which window and which of its pixels, [most, length * scale]; ``weight`` how much that
    counts. Where fewer than ``most`` reach a pixel, the last of them is named again with weight 0.
    """

    pixels: Tensor
    window: Tensor
    place: Tensor
    weight: Tensor

    @classmethod
    def of(cls, axis: AxisTiles, size: int, scale: int, device: torch.device) -> "_AxisPlaces":
        starts, side = torch.tensor(axis.starts), size * scale
        place = torch.arange((axis.starts[-1] + size) * scale) - starts[:, None] * scale  # [windows, length * scale]
        inside = (place >= 0) & (place < side)
        place = place.clamp(0, side - 1)
        count, first = inside.sum(0), inside.to(torch.uint8).argmax(0)  # those that reach a pixel are neighbours
        most = max(sum(start - size < other <= start for other in axis.starts) for start in axis.starts)
        order = torch.arange(most)[:, None]
        window = first + torch.minimum(order, count - 1)
        place = place.gather(0, window)
        weight = axis.weights[window, place] * (order < count)
        tables = starts[:, None] + torch.arange(size), window, place, weight
        return cls(*(moved(table, device) for table in tables))


@dataclass(frozen=True)
class _Places:
    rows: _AxisPlaces
    columns: _AxisPlaces

    @classmethod
    def of(cls, height: int, width: int, layout: Layout, device: torch.device) -> "_Places":
        axes = [
            blend_axis(max(side, layout.tile), layout.tile, layout.scale, layout.overlap, layout.margin)
            for side in (height, width)
        ]
        rows, columns = (_AxisPlaces.of(axis, layout.tile, layout.scale, device) for axis in axes)
        return cls(rows, columns)

    @property
    def windows(self) -> int:
        """Return their number."""
        return len(self.rows.pixels) * len(self.columns.pixels)

    def cut(self, image: Tensor) -> Tensor:
        """Cut an image [C, H, W] into windows, float32 [windows, C, size, size], row by row."""
        (high, size), wide = self.rows.pixels.shape, len(self.columns.pixels)
        channel = torch.arange(len(image), device=image.device)[:, None, None]
        rows = self.rows.pixels.view(high, 1, 1, size, 1)
        columns = self.columns.pixels.view(wide, 1, 1, size)
        return image.float()[channel, rows, columns].flatten(0, 1)  # [high, wide, C, size, size] before

    def join(self, outputs: Tensor) -> Tensor:
        """Join the outputs of all windows [windows, C, side, side] to an image, float32 [C, H * scale, W * scale]."""
        outputs = outputs.unflatten(0, (len(self.rows.pixels), len(self.columns.pixels)))
        channel = torch.arange(outputs.shape[2], device=outputs.device)[:, None, None]
        joined: Tensor | None = None
        for row, y, across in zip(self.rows.window, self.rows.place, self.rows.weight, strict=True):
            for column, x, along in zip(self.columns.window, self.columns.place, self.columns.weight, strict=True):
                part = outputs[row[:, None], column, channel, y[:, None], x].float()  # [C, H * scale, W * scale]
                weight = across[:, None] * along
                joined = part * weight if joined is None else joined.addcmul_(part, weight)
        assert joined is not None
        return joined


def moved(x: Tensor, device: torch.device) -> Tensor:
    """Return x on that device; on its way to a GPU the host does not wait."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def fetched(result: Tensor, home: torch.device, *, wait: bool = True) -> Tensor:
    """Return a result on that device; a copy from a GPU to the host goes to pinned memory, and is waited for here.

    Without ``wait`` the caller has to wait before the result is read.
    """
    if result.device.type != "cuda" or home.type != "cpu":
        return result.to(home)
    there = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    there.copy_(result, non_blocking=True)
    if wait:
        torch.cuda.current_stream(result.device).synchronize()
    return there
