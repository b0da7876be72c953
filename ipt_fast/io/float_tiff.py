"""TIFF files of float colours, which Pillow does not open, unlike float gray: tifffile reads them (extra: tiff)."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from ipt_fast.io.images import DECODE_ERRORS, UPRIGHT, ImageError, LoadedImage, decode_reason, refuse_too_many
from ipt_fast.io.metadata import Metadata, kept_of

_FLOAT = 3  # of the tag SampleFormat


def read_float_tiff(path: Path) -> LoadedImage | None:
    """Read a TIFF of float RGB or RGBA as float32 0..1, upright; None where the file is anything else.

    Raises:
        ImageError: values that are nan, infinite or outside 0..1, too many of them, a damaged file, or tifffile is not
            there.
    """
    tags = _tags(path)
    if tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] != _FLOAT or tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) < 3:
        return None
    refuse_too_many(path, tags.get(TiffImagePlugin.IMAGEWIDTH, 0) * tags.get(TiffImagePlugin.IMAGELENGTH, 0))
    try:
        import tifffile
    except ImportError as error:
        raise ImageError(
            f"{path}: a TIFF of float colours needs tifffile; pip install 'ipt-fast[tiff]', or save it with 16 bits"
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            page, count = file.pages[0], len(file.pages)
            values = np.asarray(page.asarray(), np.float32)  # type: ignore[union-attr]
            separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE  # type: ignore[union-attr]
    except DECODE_ERRORS as error:
        raise ImageError(f"{path}: cannot be read ({decode_reason(error)})") from error
    pixels = np.moveaxis(values, 0, -1) if separate else values
    if pixels.shape[2] > 4:
        raise ImageError(f"{path}: cannot be read ({pixels.shape[2]} float channels; needed are 3, or 4 with alpha)")
    if not np.isfinite(pixels).all():
        raise ImageError(f"{path}: cannot be read (float pixels that are nan or infinite)")
    smallest, largest = pixels.min(), pixels.max()
    if smallest < 0 or largest > 1:
        raise ImageError(f"{path}: cannot be read (float pixels from {smallest:g} to {largest:g}; needed are 0..1)")
    notes = ["32-bit floats"] + [f"first of {count} pages"] * (count > 1)
    turn = UPRIGHT.get(tags.get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        channels = [np.asarray(Image.fromarray(channel).transpose(turn)) for channel in np.moveaxis(pixels, -1, 0)]
        pixels = np.dstack(channels)
        notes.append("turned upright as its EXIF tag says")
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    metadata = Metadata(tags.get(TiffImagePlugin.ICCPROFILE), _exif(path, notes))
    return LoadedImage(np.ascontiguousarray(pixels[..., :3]), alpha, tuple(notes), metadata)


def _tags(path: Path) -> dict[int, Any]:
    """Return the tags of a TIFF's first page, none of any other file."""
    try:
        with open(path, "rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            return {tag: tags[tag] for tag in tags}
    except DECODE_ERRORS:
        return {}


def _exif(path: Path, notes: list[str]) -> bytes | None:
    try:
        exif = Image.Exif()
        exif.load(path.read_bytes())
        return kept_of(exif)
    except DECODE_ERRORS:
        notes.append("its EXIF data are damaged and left out")
        return None
