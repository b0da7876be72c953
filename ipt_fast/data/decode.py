"""Image bytes to pixels: any format that Pillow reads, JPEG by simplejpeg where it is installed.

Pixels are uint8 RGB [H, W, 3] as stored in the file: EXIF rotation is not applied (as in the reference's reader).
Gray is repeated, CMYK converted, 16 bits lose their lower byte, and transparency is laid over white.
"""

import io
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ipt_fast.data.jpeg_rows import keep_rows

try:
    import simplejpeg
except ImportError:  # Pillow alone serves, slower
    simplejpeg = None  # type: ignore[assignment]

JPEG_MAGIC = b"\xff\xd8\xff"
# What Pillow and simplejpeg raise on bytes that are no proper image; the bomb error is Pillow's for absurd sizes.
DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG file does."""
    return data[:3] == JPEG_MAGIC


def decode_rows(data: bytes, rows: int | None = None, mode: str | None = None) -> np.ndarray:
    """At least the upper ``rows`` rows of an image (None: all), uint8 RGB [>= rows, W, 3].

    ``mode`` is Pillow's name for the kind of pixels, where it is known: ``RGB`` and ``L`` JPEGs take the fast way.

    Raises:
        one of DECODE_ERRORS: the bytes are no image, or a damaged one.
    """
    if is_jpeg(data):
        fewer = keep_rows(data, rows) if rows is not None else None
        if simplejpeg is not None and mode in ("RGB", "L"):
            # Not strict: what lies below the wanted rows counts as extraneous bytes. The index was strict.
            return simplejpeg.decode_jpeg(data if fewer is None else fewer, "RGB", strict=False)
        data = data if fewer is None else fewer
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def silence_pillow_warnings() -> None:
    """Let Pillow's own warnings pass unseen from now on: odd EXIF or palettes in one of a million photos are no news.

    Called where photos are read from many threads, since ``warnings.catch_warnings`` in one of them could swallow the
    warnings of all others, for good.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pillow's image as uint8 RGB [H, W, 3], whatever its mode."""
    if image.mode.startswith("I"):  # 16 bits: I;16, I;16B, and I where Pillow widened them
        return np.repeat((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("float pixels (mode F) have no defined range; convert them to 8 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def decode_region(data: bytes, top: int, left: int, height: int, width: int, mode: str | None = None) -> np.ndarray:
    """The rectangle of that place and size, uint8 RGB [height, width, 3]; only the rows down to its end are decoded.

    Raises:
        ValueError: the image does not hold the rectangle.
        one of DECODE_ERRORS: the bytes are no image, or a damaged one.
    """
    pixels = decode_rows(data, top + height, mode)
    region = pixels[top : top + height, left : left + width]
    if region.shape[:2] != (height, width):
        wide = pixels.shape[1] < left + width
        extent = f"{pixels.shape[1]} pixels wide" if wide else f"{pixels.shape[0]} pixels high"
        raise ValueError(f"the image is {extent} and does not hold the region of {width}x{height} at ({left}, {top})")
    return region


def mirror_pad(region: np.ndarray, size: int) -> np.ndarray:
    """Extend [h, w, 3] to [size, size, 3] below and to the right by symmetric mirroring, as often as it takes."""
    height, width = region.shape[:2]
    if height >= size and width >= size:
        return region[:size, :size]
    square = np.empty((size, size, 3), region.dtype)
    square[:height, :width] = region[:size, :size]
    mirror_fill(square, height, width, np.flip)
    return square


def mirror_fill(square: Any, height: int, width: int, flip: Callable[..., Any]) -> None:
    """Fill [S, S, 3], an array or a tensor of which the upper left [height, width] is there, by symmetric mirroring.

    Rows and columns at a time: gathering pixel by pixel takes longer than to decode a photo. ``flip`` is np.flip or
    torch.flip.
    """
    size, done = len(square), height
    while done < size:  # the border below is a mirror, and so is the end of each reflection
        more = min(done, size - done)
        square[done : done + more, :width] = flip(square[done - more : done, :width], (0,))
        done += more
    done = width
    while done < size:
        more = min(done, size - done)
        square[:, done : done + more] = flip(square[:, done - more : done], (1,))
        done += more
