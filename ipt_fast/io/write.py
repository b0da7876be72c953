"""The one writer of image files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ipt_fast.arguments import checked
from ipt_fast.io import sixteen_bit
from ipt_fast.io.atomic import atomic_path
from ipt_fast.io.images import DECODE_ERRORS, SUFFIXES, array_to_pil
from ipt_fast.io.metadata import Metadata

# What an output may be named: those that hold the colours of a photo, and that Pillow can write here.
WRITABLE = tuple(s for s in SUFFIXES if s not in (".gif", ".pgm") and Image.registered_extensions()[s] in Image.SAVE)
_WITHOUT_ALPHA = ("JPEG", "BMP", "PPM")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 90},
}  # fmt: skip


@checked
def write_image(
    image: Image.Image | np.ndarray,
    path: Path,
    *,
    force: bool = True,
    metadata: Metadata | None = None,
    quality: int | None = None,
) -> tuple[str, ...]:
    """Write an image whole or not at all, in the format of the name's suffix.

    Args:
        image: a PIL image, or uint8, uint16 or float32 0..1 [H, W, 3 or 4]. PNG and TIFF hold 16 bits, TIFF floats too;
            others get 8 bits.
        path: the file.
        force: replace a file that is there.
        metadata: what goes with it.
        quality: 1 to 100, of JPEG (None: 95), AVIF (None: 90) and WebP (None: without loss).

    Returns:
        What the format could not keep, as notes.

    Raises:
        FileExistsError: ``path`` is there, and not ``force``.
        OSError: it cannot be written, or this kind of file cannot hold it.
        ValueError: the suffix is of no kind of image.
    """
    metadata = metadata or Metadata()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: its name ends in no kind of image; needed is one of {', '.join(WRITABLE)}")
    notes: tuple[str, ...] = ()
    if isinstance(image, np.ndarray) and image.dtype == np.float32 and kind != "TIFF":
        image = np.rint(image * 65535).astype(np.uint16)
        notes = ("rounded to 16 bits, this kind of file has no floats",) if kind == "PNG" else ()
    deep_writer = {"PNG": sixteen_bit.write_png, "TIFF": sixteen_bit.write_tiff}.get(kind)
    if isinstance(image, np.ndarray) and image.dtype != np.uint8 and deep_writer:
        with atomic_path(path, force=force) as temporary:
            deep_writer(temporary, image, metadata)
        return notes
    options, notes = metadata.options(kind)
    if isinstance(image, np.ndarray):
        notes += ("rounded to 8 bits, this kind of file has no more",) if image.dtype == np.uint16 else ()
        image = array_to_pil(image)
    if kind in _WITHOUT_ALPHA and image.mode == "RGBA":
        notes += ("alpha channel dropped, this kind of file has none",)
        image = image.convert("RGB")
    options |= _SAVE_OPTIONS.get(kind, {}) if quality is None or kind not in _SAVE_OPTIONS else {"quality": quality}
    with atomic_path(path, force=force) as temporary:
        try:
            image.save(temporary, kind, **options)
        except OSError:
            raise
        except DECODE_ERRORS as error:  # larger than the format can hold
            raise OSError(f"{path}: {image.width}x{image.height} pixels cannot be written so ({error})") from error
    return notes


def has_quality(path: Path) -> bool:
    """Return whether a file of this name takes a quality."""
    return Image.registered_extensions().get(path.suffix.lower()) in _SAVE_OPTIONS
