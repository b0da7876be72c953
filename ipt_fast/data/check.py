"""Look at one image file as a whole: can training use it, and what is it?"""

import io
from dataclasses import dataclass, replace

from PIL import Image, UnidentifiedImageError

from ipt_fast.data.decode import is_jpeg, simplejpeg, to_rgb
from ipt_fast.io.images import DECODE_ERRORS, decode_reason

_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Finding:
    """What one file is. ``reason`` starts with the kind of refusal, a colon and details; empty where it is ok.

    ``notes`` name what is out of the ordinary but served: gray, cmyk, 16-bit, alpha, exif-rotated, renamed.
    """

    verdict: str
    reason: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    notes: tuple[str, ...] = ()


def check_image(data: bytes, name: str, min_size: int) -> Finding:
    """Decode all of an image file's bytes. Never raises on what the bytes hold."""
    if not data:
        return Finding("refused", "zero-byte: the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        return Finding("refused", "not an image: no known image format in its bytes")
    except Image.DecompressionBombError as error:
        return Finding("refused", f"too large: {decode_reason(error)}")
    except DECODE_ERRORS as error:
        return Finding("refused", f"corrupt: {decode_reason(error)}")
    with image:
        return _check_opened(image, data, name, min_size)


def _check_opened(image: Image.Image, data: bytes, name: str, min_size: int) -> Finding:
    width, height = image.size
    found = Finding("ok", format=image.format or "", width=width, height=height, mode=image.mode)
    if min(width, height) < min_size:
        return replace(found, verdict="refused", reason=f"too small: {width}x{height}, needs {min_size} a side")
    try:
        notes = _notes(image, name)
        _decode_all(image, data)
    except DECODE_ERRORS as error:
        text = decode_reason(error)
        kind = "truncated" if "truncated" in text.lower() or "premature end" in text.lower() else "corrupt"
        return replace(found, verdict="refused", reason=f"{kind}: {text}")
    return replace(found, notes=notes)


def _decode_all(image: Image.Image, data: bytes) -> None:
    """Raise where any part of the image cannot be decoded."""
    if simplejpeg is not None and is_jpeg(data) and image.mode in ("RGB", "L"):
        # Strict also refuses data left over after the last row: damage in the middle of a file shows as just that.
        simplejpeg.decode_jpeg(data, "RGB", strict=True)
    else:
        to_rgb(image)


def _notes(image: Image.Image, name: str) -> tuple[str, ...]:
    mode = image.mode
    notes = []
    if mode in ("1", "L", "LA", "La") or mode.startswith("I"):
        notes.append("gray")
    if mode == "CMYK":
        notes.append("cmyk")
    if mode.startswith("I"):
        notes.append("16-bit")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        notes.append("alpha")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        notes.append("exif-rotated")
    extension = "." + name.rsplit(".", 1)[-1].lower()
    if Image.registered_extensions().get(extension, image.format) not in (image.format, "MPO"):
        notes.append("renamed")
    return tuple(notes)
