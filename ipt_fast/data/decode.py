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

try:
    import simplejpeg
except ImportError:  # Pillow alone serves, slower
    simplejpeg = None  # type: ignore[assignment]

JPEG_MAGIC = b"\xff\xd8\xff"
# What Pillow and simplejpeg raise on bytes that are no proper image; the bomb error is Pillow's for absurd sizes.
DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
# Rows below the last wanted one that chroma upsampling looks at: one chroma row, at most 4 luma rows.
_CONTEXT_ROWS = 4
_NO_LENGTH = {0x01, *range(0xD0, 0xD8)}
_BASELINE, _EXTENDED = 0xC0, 0xC1
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA


def is_jpeg(data: bytes) -> bool:
    """Tell whether the bytes begin as a JPEG file does."""
    return data[:3] == JPEG_MAGIC


def decode_rows(data: bytes, rows: int | None = None, mode: str | None = None) -> np.ndarray:
    """Decode at least the upper ``rows`` rows of an image (None: all), uint8 RGB [>= rows, W, 3].

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
    """Convert Pillow's image to uint8 RGB [H, W, 3], whatever its mode."""
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
    """Decode the rectangle of that place and size, uint8 RGB [height, width, 3], and no rows below it.

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


def keep_rows(data: bytes, rows: int) -> bytes | None:
    """Return the JPEG with a header that names about ``rows`` rows; None where the trick does not apply.

    A baseline JPEG holds its blocks row by row, so nothing below the last wanted row has to be decoded. The decoders at
    hand cannot be told to stop, but they do stop at the height that the header names. The rows above come out bit for
    bit as from the whole file (tested on 800 photos).

    The trick applies to sequential Huffman JPEGs with one scan. The decoder will find data after the last row that it
    expects and may warn of it ("extraneous bytes"): decode without strictness.
    """
    frame = None
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _NO_LENGTH:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _START_OF_FRAME:
            if marker not in (_BASELINE, _EXTENDED) or at + 10 > len(data):
                return None
            frame = at
        elif marker == _START_OF_SCAN:
            # A scan with fewer components than the frame is one of several: later ones hold the other colours.
            if frame is None or at + 5 > len(data) or data[at + 4] != data[frame + 9]:
                return None
            (height,) = struct.unpack_from(">H", data, frame + 5)
            wanted = rows + _CONTEXT_ROWS
            if wanted >= height:
                return None
            return b"".join((data[: frame + 5], struct.pack(">H", wanted), data[frame + 7 :]))
        at += 2 + length
    return None
