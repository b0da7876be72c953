"""Images in, finished rows of the results out: no image has to be in memory as a whole."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ipt_fast.io.mirror import mirror_pad
from ipt_fast.tiling.batches import Network, in_batches, in_full_batches
from ipt_fast.tiling.windows import Stitch, Tiling, tiling


@dataclass(frozen=True)
class Source:
    """An image of which ``read(top, bottom)`` returns rows, a tensor [C, bottom - top, W]."""

    height: int
    width: int
    read: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, image: Tensor) -> "Source":
        """Return the source of a tensor [C, H, W]."""
        return cls(image.shape[-2], image.shape[-1], lambda top, bottom: image[:, top:bottom])


@dataclass(frozen=True)
class Layout:
    """How images are cut and put together: the arguments of ``restore_tiled`` of these names."""

    tile: int
    scale: int
    overlap: int
    blend: Stitch = "blend"
    margin: int = 0

    def over(self, source: Source, device: torch.device) -> Tiling:
        """Lay windows over an image; one that is smaller than a window will be mirrored up to it."""
        sides = max(source.height, self.tile), max(source.width, self.tile)
        return tiling(*sides, self.tile, self.scale, self.overlap, self.blend, margin=self.margin, device=device)


def restored_strips(
    network: Network,
    sources: Sequence[Source],
    layout: Layout,
    device: torch.device,
    batch_size: int,
    progress: Callable[[float], None] | None = None,
    *,
    full: bool = False,
) -> Iterator[Iterator[Tensor]]:
    """Yield, of one image after the other, its finished rows from top to bottom, float32 [C, any, W * scale].

    The rows of an image have to be taken before those of the next. Batches reach over images, by whole rows of windows
    unless every batch is to be ``full``.
    """
    tilings = [layout.over(source, device) for source in sources]
    total = sum(len(tiles.rows.starts) * len(tiles.columns.starts) for tiles in tilings)
    done = None if progress is None else lambda windows: progress(windows / total)
    windows, batches = _cut(sources, tilings, layout.tile, device), in_full_batches if full else in_batches
    outputs = batches(checked(network, layout), windows, batch_size, done)
    for source, tiles in zip(sources, tilings, strict=True):
        rows = itertools.islice(outputs, len(tiles.rows.starts))
        yield _without_mirror(tiles.stitch(rows), source, layout)


def _cut(sources: Sequence[Source], tilings: list[Tiling], tile: int, device: torch.device) -> Iterator[Tensor]:
    for source, tiles in zip(sources, tilings, strict=True):
        for top in tiles.rows.starts:
            strip = source.read(top, min(top + tile, source.height)).to(device)
            yield tiles.cut(mirror_pad(strip, tile, centre=True)[0])


def checked(network: Network, layout: Layout) -> Network:
    """Refuse outputs of another size than windows become; all else would be cut or smeared in silence."""
    side = layout.tile * layout.scale

    def call(windows: Tensor) -> Tensor:
        outputs = network(windows)
        if not isinstance(outputs, Tensor) or outputs.shape != (len(windows), *outputs.shape[1:2], side, side):
            given = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(
                f"restore_tiled: the network made {given} of windows {list(windows.shape)}; with "
                f"scale={layout.scale} it has to make [{len(windows)}, C, {side}, {side}]"
            )
        return outputs

    return call


def _without_mirror(strips: Iterator[Tensor], source: Source, layout: Layout) -> Iterator[Tensor]:
    """Cut off what small images were extended by; where that is above and below, there is one strip."""
    top, left = (max(0, layout.tile - side) // 2 * layout.scale for side in (source.height, source.width))
    height, width = source.height * layout.scale, source.width * layout.scale
    for strip in strips:
        yield strip[:, top : top + height, left : left + width]


def gathered(strips: Iterator[Tensor], height: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Put strips together to [C, height, W] of that dtype, on that device; copies from a GPU are waited for once."""
    top, out = 0, torch.empty(0)
    for strip in strips:
        if top == 0:
            pinned = strip.is_cuda and device.type == "cpu"
            out = torch.empty(len(strip), height, strip.shape[2], dtype=dtype, device=device, pin_memory=pinned)
        out[:, top : top + strip.shape[1]].copy_(quantised(strip, dtype), non_blocking=True)
        top += strip.shape[1]
    if out.is_pinned():
        torch.cuda.current_stream().synchronize()
    return out


def quantised(strip: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamp and round, in place, what will be uint8 or uint16 (0..255 becomes 0..65535); leave floats as they are."""
    if dtype == torch.uint8:
        return strip.clamp_(0, 255).round_()
    return strip.clamp_(0, 255).mul_(257).round_() if dtype == torch.uint16 else strip


def array_source(image: np.ndarray) -> Source:
    """Return the source of an array [H, W, C] or [H, W]; 16 bits become 0..255 in float32."""

    def read(top: int, bottom: int) -> Tensor:
        rows = np.array(image[top:bottom])  # a copy: what is mapped from a file may be read-only
        rows = rows.astype(np.float32) / 257 if rows.dtype == np.uint16 else rows
        return torch.from_numpy(rows.reshape(*rows.shape[:2], -1)).permute(2, 0, 1)

    return Source(image.shape[0], image.shape[1], read)
