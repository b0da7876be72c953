"""One photo on its way through the page: checked, restored, and written as what the page shows; no Gradio here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ipt_fast.inference import restore
from ipt_fast.inference.images import enlarge_alpha
from ipt_fast.io.images import DECODE_ERRORS, LoadedImage, array_to_pil, on_white, read_image, with_alpha
from ipt_fast.io.write import write_image
from ipt_fast.tasks import get_task

_SHOWN, _PREVIEW = 2048, 1024  # longest sides of what a browser gets to show; the download is whole
_LABELS = {"derain": "Remove rain", "deblur": "Remove blur"}


class PhotoError(Exception):
    """A photo that cannot be taken; the message is for the person who gave it."""


@dataclass(frozen=True)
class Restored:
    """Files of one answer: ``before`` and ``after`` are of one size, for the slider; ``full`` is the download."""

    before: Path
    after: Path
    full: Path
    text: str


def label(task: str) -> str:
    """Return what a task does, in words."""
    known = get_task(task)
    if known.kind == "sr":
        return f"Enlarge ×{known.scale}"
    return _LABELS.get(known.kind, f"Remove noise (σ {known.sigma:g})")


def read_photo(path: Path, max_pixels: int) -> LoadedImage:
    """Read a photo of at most ``max_pixels``; larger ones are refused before they are decoded.

    Raises:
        PhotoError: too large, not an image, damaged, or gone.
    """
    name = path.name
    if not path.is_file():
        raise PhotoError("The photo is no longer here. Please drop it again.")
    try:
        with Image.open(path) as opened:
            width, height = opened.size
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{name} has far too many pixels; up to {_mega(max_pixels)} are taken here.") from error
    except DECODE_ERRORS:  # the reader below says why
        width = height = 0
    if width * height > max_pixels:
        size = f"{width} × {height} pixels ({_mega(width * height)})"
        raise PhotoError(f"{name} is too large: {size}; up to {_mega(max_pixels)} are taken here.")
    try:
        return read_image(path, deep=True)
    except OSError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise PhotoError(f"{name} cannot be opened: {reason}.") from error


def preview(photo: LoadedImage, path: Path) -> Path:
    """Write a photo of any kind as a PNG that a browser shows, and return its path."""
    image = on_white(photo.pil())
    image.thumbnail((_PREVIEW, _PREVIEW))
    write_image(image, path, metadata=photo.metadata)
    return path


def restore_photo(
    network: Any,
    photo: LoadedImage,
    task: str,
    folder: Path,
    stem: str,
    progress: Callable[[float], None] | None = None,
) -> Restored:
    """Restore a photo and write the three files of the answer into ``folder``, ``STEM_TASK.png`` the whole one.

    Colour profile, EXIF data, alpha and 16 bits a channel go with the photo, as with ``ipt-fast restore``.

    Raises:
        OSError: a file cannot be written.
        RuntimeError, MemoryError: of the network.
    """
    pixels = restore(network, photo.pixels, task, progress=progress)
    (height, width), (high, wide) = photo.pixels.shape[:2], pixels.shape[:2]
    alpha = photo.alpha if photo.alpha is None else enlarge_alpha(photo.alpha, (wide, high))
    full = folder / f"{stem}_{task}.png"
    write_image(with_alpha(pixels, alpha), full, metadata=photo.metadata)
    share = min(1.0, _SHOWN / max(wide, high))
    size = max(1, round(wide * share)), max(1, round(high * share))
    shown = []
    for name, image in (("before", photo.pil()), ("after", array_to_pil(with_alpha(pixels, alpha)))):
        image = on_white(image)
        image = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        shown.append(folder / f"{name}.png")
        write_image(image, shown[-1], metadata=photo.metadata)
    text = f"{label(task)}: {width} × {height} → {wide} × {high} pixels"
    if share < 1:
        text += "; the comparison is a smaller copy, the download is whole"
    return Restored(shown[0], shown[1], full, "; ".join([text, *photo.notes]) + ".")


def _mega(pixels: int) -> str:
    return f"{pixels / 1e6:.3g} megapixels"
