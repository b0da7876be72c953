"""Image bytes to pixels: any format that Pillow reads, JPEG by simplejpeg where it is installed.

Pixels are uint8 RGB [H, W, 3] as stored in the file: EXIF rotation is not applied (as in the reference's reader). What
becomes of other kinds of pixels is said in ``ipt_fast.io.images``.
"""

import io

import numpy as np
from PIL import Image

from ipt_fast.data.jpeg_rows import keep_rows
from ipt_fast.io.images import from_pil

try:
    import simplejpeg
except ImportError:  # Pillow alone serves, slower
    simplejpeg = None  # type: ignore[assignment]

JPEG_MAGIC = b"\xff\xd8\xff"


def is_jpeg(data: bytes) -> bool:
    """Return whether the bytes begin as a JPEG file does."""
    return data[:3] == JPEG_MAGIC


def decode_rows(data: bytes, rows: int | None = None, mode: str | None = None) -> np.ndarray:
    """Decode at least the upper ``rows`` rows of an image (None: all), uint8 RGB [>= rows, W, 3].

    ``mode`` is Pillow's name for the kind of pixels, where it is known: ``RGB`` and ``L`` JPEGs take the fast way.

    Raises:
        one of ``ipt_fast.io.images.DECODE_ERRORS``: the bytes are no image, or a damaged one.
    """
    if is_jpeg(data):
        fewer = keep_rows(data, rows) if rows is not None else None
        if simplejpeg is not None and mode in ("RGB", "L"):
            # Not strict: what lies below the wanted rows counts as extraneous bytes. The index was strict.
            return simplejpeg.decode_jpeg(data if fewer is None else fewer, "RGB", strict=False)
        data = data if fewer is None else fewer
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert Pillow's image, as stored, to uint8 RGB [H, W, 3], whatever its mode."""
    return from_pil(image, exif=False, alpha="drop").pixels


def decode_region(data: bytes, top: int, left: int, height: int, width: int, mode: str | None = None) -> np.ndarray:
    """Decode the rectangle of that place and size, uint8 RGB [height, width, 3], and only the rows down to its end.

    Raises:
        ValueError: the image does not hold the rectangle.
        one of ``ipt_fast.io.images.DECODE_ERRORS``: the bytes are no image, or a damaged one.
    """
    pixels = decode_rows(data, top + height, mode)
    region = pixels[top : top + height, left : left + width]
    if region.shape[:2] != (height, width):
        wide = pixels.shape[1] < left + width
        extent = f"{pixels.shape[1]} pixels wide" if wide else f"{pixels.shape[0]} pixels high"
        raise ValueError(f"the image is {extent} and does not hold the region of {width}x{height} at ({left}, {top})")
    return region
