"""Image bytes to pixels: any format that Pillow reads, JPEG by simplejpeg where it is installed.

Pixels are uint8 RGB [H, W, 3] as stored in the file: EXIF rotation is not applied (as in the reference's reader). What
becomes of other kinds of pixels is said in ``ipt_fast.io.images``.
"""

import io
import struct

import numpy as np
from PIL import Image

from ipt_fast.io.images import from_pil

try:
    import simplejpeg
except ImportError:  # Pillow alone serves, slower
    simplejpeg = None  # type: ignore[assignment]

JPEG_MAGIC = b"\xff\xd8\xff"
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
