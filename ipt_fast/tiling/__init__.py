"""An image of any size through any network that maps squares of one size to squares ``scale`` times as large."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.tiling.strips import Layout, Source, array_source, gathered, quantised, restored_strips
from ipt_fast.tiling.whole import fetched, fits_whole, moved, restored_whole
from ipt_fast.tiling.windows import Stitch

__all__ = ["restore_tiled"]

_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32, "float64": torch.float64}


@checked(tile=1, overlap=0, scale=1, batch_size=1, margin=0)
@torch.no_grad()
def restore_tiled(
    network: Callable[[Tensor], Tensor],
    image: Any,
    tile: int = 48,
    overlap: int = 10,
    scale: int = 1,
    batch_size: int = 16,
    blend: Stitch = "blend",
    *,
    margin: int = 0,
    device: torch.device | str | None = None,
    out: Any = None,
    progress: Callable[[float], None] | None = None,
) -> Any:
    """Cut an image into overlapping windows, run a network on them, and fade the outputs into each other.

    No gradient is kept. On a GPU an image whose windows take less than 1 GB lies there as a whole, and the host waits
    for its result alone. Otherwise, beyond image and result, memory holds one row of windows with its outputs, one
    batch of both, and what the network takes: at most (tile^2 + 3 (tile * scale)^2) * 4 C bytes for each window of a
    row and of a batch. With arrays on disk (``numpy.memmap``, zarr, a TIFF by ``tifffile.memmap``) as ``image`` and
    ``out``, an image of any size goes through in strips.

    Args:
        network: any callable, float32 [n, C, tile, tile] -> [n, C', tile * scale, tile * scale] of any float dtype, on
            the device of its input.
        image: tensor [C, H, W] or [B, C, H, W] of any real dtype; or an array [H, W, C] or [H, W] of uint8, uint16 or
            floats (anything with shape and dtype that gives rows as ``image[top:bottom]``). The network gets its values
            as they are, but 16 bits as 0..255. Images smaller than a window are mirrored.
        tile: side of a window in input pixels.
        overlap: least overlap of neighbouring windows in input pixels; less is faster.
        scale: how many times larger the network's output is.
        batch_size: windows at once; halved, with a ResourceWarning, where memory runs out.
        blend: "blend" fades windows into each other along a squared sine; "official" is the IPT reference code's own
            stitching, with windows at every quarter of their size (``overlap`` and ``margin`` do not matter there).
        margin: input pixels at the inner edges of a window whose outputs count nothing: for convolutions, whose
            outputs are wrong where padding reaches. A network that sees r pixels far gives the untiled result with
            margin >= r; needs overlap >= 2 * margin.
        device: where windows, network and stitching are; None is that of a tensor, and the CPU for an array.
        out: for an array: where the result is written, an array [H * scale, W * scale, C'] that takes
            ``out[top:bottom] = rows``; of integers, they are clamped and rounded. None makes one of the image's dtype.
        progress: called with each share of the work that is done; they add up to 1.

    Returns:
        For an array ``out``; for a tensor float32 [B, C', H * scale, W * scale] (or without B), on its device.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an image, overlap, margin or out that does not fit, or a network whose output has another size.
    """
    if overlap >= tile or 2 * margin > overlap:
        raise ValueError(
            f"restore_tiled: overlap must be less than tile and at least twice the margin, got tile={tile}, "
            f"overlap={overlap}, margin={margin}"
        )
    if blend == "official" and tile < 4:
        raise ValueError(f'restore_tiled: blend="official" needs a tile of at least 4 pixels, got {tile}')
    layout = Layout(tile, scale, overlap, blend, margin)
    if isinstance(image, Tensor):
        held = image.layout is torch.strided and not image.is_meta and not image.is_complex()
        if not held or image.dim() not in (3, 4) or 0 in image.shape or out is not None:
            raise ValueError(
                f"restore_tiled: image must be an array, or a dense real tensor [B, C, H, W] without out, got a "
                f"{image.dtype} tensor {list(image.shape)}" + " and out" * (out is not None)
            )
        home, images = image.device, image.reshape(-1, *image.shape[-3:])
        where = torch.device(home if device is None else device)
        if where.type == "cuda" and fits_whole(layout, *image.shape[-2:]):
            done = list(restored_whole(network, list(moved(images, where)), layout, batch_size, progress))
            return fetched(done[0] if image.dim() == 3 else torch.stack(done), home)
        sources = [Source.of(one) for one in images]
        results = restored_strips(network, sources, layout, where, batch_size, progress)
        restored = [gathered(strips, scale * image.shape[-2], torch.float32, home) for strips in results]
        return restored[0] if image.dim() == 3 else torch.stack(restored)
    dtype = _dtype("image", image)
    if len(image.shape) not in (2, 3) or 0 in image.shape:
        raise ValueError(f"restore_tiled: image must be an array [H, W, C] or [H, W], got {list(image.shape)}")
    height, where = image.shape[0] * scale, torch.device(device or "cpu")
    if out is None and where.type == "cuda" and fits_whole(layout, *image.shape[:2]):
        pixels = moved(array_source(image).read(0, image.shape[0]), where)
        (one,) = restored_whole(network, [pixels], layout, batch_size, progress)
        return _as_array(fetched(quantised(one, dtype).to(dtype), torch.device("cpu")), len(image.shape))
    (strips,) = restored_strips(network, [array_source(image)], layout, where, batch_size, progress)
    if out is None:
        return _as_array(gathered(strips, height, dtype, torch.device("cpu")), len(image.shape))
    dtype, top = _dtype("out", out), 0
    if tuple(out.shape[:2]) != (height, image.shape[1] * scale):
        raise ValueError(
            f"restore_tiled: out must be [{height}, {image.shape[1] * scale}, channels], got {list(out.shape)}"
        )
    for strip in strips:
        rows = quantised(strip, dtype).to(dtype).permute(1, 2, 0).cpu().numpy()
        out[top : top + len(rows)] = rows.reshape(len(rows), *out.shape[1:])
        top += len(rows)
    return out


def _as_array(result: Tensor, axes: int) -> np.ndarray:
    done: np.ndarray = result.permute(1, 2, 0).contiguous().numpy()
    return done[..., 0] if axes == 2 and done.shape[2] == 1 else done


def _dtype(name: str, array: Any) -> torch.dtype:
    """Return the dtype that a result of this array's dtype has."""
    given = str(getattr(array, "dtype", type(array).__name__))
    if not hasattr(array, "shape") or given not in _DTYPES:
        raise ValueError(f"restore_tiled: {name} must be a tensor or an array of {', '.join(_DTYPES)}, got {given}")
    return _DTYPES[given]
