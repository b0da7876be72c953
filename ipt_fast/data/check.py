"""Look at one image file as a whole: can training use it, and what is it?"""

import io
from dataclasses import dataclass, replace

from PIL import Image, UnidentifiedImageError

from ipt_fast.data.decode import is_jpeg, simplejpeg, to_rgb
from ipt_fast.io.images import DECODE_ERRORS, decode_reason
from ipt_fast.io.scan import ImageFile

_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image. ``path`` is absolute (``shard.tar::member`` in a shard), ``width`` and ``height`` are as stored.

    ``verdict`` is "ok" or "refused"; ``reason`` begins with the kind of refusal, a colon and details. ``notes`` name
    what is unusual and served all the same: gray, cmyk, 16-bit, alpha, exif-rotated, renamed. ``offset`` is the place
    of the bytes in a tar shard, -1 for a file of its own.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    verdict: str = "ok"
    reason: str = ""
    notes: tuple[str, ...] = ()
    offset: int = -1

    def refused(self, reason: str) -> "ImageEntry":
        """Return the entry of an image that training cannot use."""
        return replace(self, verdict="refused", reason=reason)


def check_image(file: ImageFile, data: bytes, min_size: int) -> ImageEntry:
    """Decode all of an image file's bytes. Never raises on what the bytes hold."""
    entry = ImageEntry(file.path, file.size_bytes, file.mtime_ns, offset=file.offset)
    if not data:
        return entry.refused("zero-byte: the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            entry = replace(entry, format=image.format or "", width=width, height=height, mode=image.mode)
            if min(width, height) < min_size:
                return entry.refused(f"too small: {width}x{height}, needs {min_size} a side")
            notes = _notes(image, file.path)
            if simplejpeg is not None and is_jpeg(data) and image.mode in ("RGB", "L"):
                # Strict also refuses data left over after the last row: damage in the middle shows as just that.
                simplejpeg.decode_jpeg(data, "RGB", strict=True)
            else:
                to_rgb(image)
    except UnidentifiedImageError:
        return entry.refused("not an image: no known image format in its bytes")
    except Image.DecompressionBombError as error:
        return entry.refused(f"too large: {decode_reason(error)}")
    except DECODE_ERRORS as error:
        text = decode_reason(error)
        kind = "truncated" if "truncated" in text.lower() or "premature end" in text.lower() else "corrupt"
        return entry.refused(f"{kind}: {text}")
    return replace(entry, notes=notes)


def _notes(image: Image.Image, name: str) -> tuple[str, ...]:
    mode = image.mode
    named = Image.registered_extensions().get("." + name.rpartition(".")[2].lower(), image.format)
    notes = {
        "gray": mode in ("1", "L", "LA", "La") or mode.startswith("I"),
        "cmyk": mode == "CMYK",
        "16-bit": mode.startswith("I"),
        "alpha": mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
        "exif-rotated": image.getexif().get(_ORIENTATION, 1) != 1,
        "renamed": named not in (image.format, "MPO"),
    }
    return tuple(note for note, applies in notes.items() if applies)
