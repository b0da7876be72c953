"""What belongs to an image beside its pixels, and goes with it into the output: colour profile and EXIF."""

from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# Of the main directory: whose photo it is, and when, where and with what it was taken. A TIFF's own layout is no part.
_KEPT = (
    ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.XResolution,
    ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit, ExifTags.Base.Software, ExifTags.Base.DateTime,
    ExifTags.Base.Artist, ExifTags.Base.Copyright, *_DIRECTORIES,
)  # fmt: skip
# The old size, and what holds places in the old file.
_DROPPED = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight, ExifTags.Base.MakerNote, ExifTags.IFD.Interop)
# How tifffile, ImageJ and OME begin descriptions of the old file's shape.
_OLD_LAYOUT = ('{"shape"', "ImageJ=", "<?xml")
_HOLD_BOTH = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")  # kinds of files
_NAMES = {"icc_profile": "colour profile", "exif": "EXIF data"}
_JPEG_SEGMENT = 65533  # bytes of EXIF that a JPEG can hold


@dataclass(frozen=True)
class Metadata:
    """``icc_profile`` is one of RGB; ``exif`` has neither orientation nor thumbnail, and begins with ``Exif``."""

    icc_profile: bytes | None = None
    exif: bytes | None = None

    def options(self, kind: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return Pillow's keywords for saving a file of this kind with it, and notes on what the kind cannot hold."""
        options: dict[str, Any] = {"icc_profile": self.icc_profile, "exif": self.exif}
        options = {key: data for key, data in options.items() if data}
        notes = []
        if options and kind not in _HOLD_BOTH:
            notes = [f"{_NAMES[key]} dropped, this kind of file has none" for key in options]
            options = {}
        elif kind == "JPEG" and len(self.exif or b"") > _JPEG_SEGMENT:
            del options["exif"]
            notes = [f"EXIF data dropped, a JPEG holds {_JPEG_SEGMENT:,} bytes of them"]
        return options, tuple(notes)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none. Damaged EXIF raises one of ``DECODE_ERRORS``."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def kept_exif(image: Image.Image) -> bytes | None:
    """Return the EXIF data that still hold once the image is upright and of another size. Raises as above."""
    return kept_of(image.getexif())


def kept_of(exif: Image.Exif) -> bytes | None:
    """Return what of these EXIF data still holds, as ``kept_exif``."""
    kept = Image.Exif()
    for tag in exif:
        if tag in _KEPT:
            kept[tag] = exif.get_ifd(tag) if tag in _DIRECTORIES else exif[tag]
    if str(kept.get(ExifTags.Base.ImageDescription, "")).startswith(_OLD_LAYOUT):
        del kept[ExifTags.Base.ImageDescription]
    if _DIRECTORIES[0] in kept:
        kept[_DIRECTORIES[0]] = {t: v for t, v in kept[_DIRECTORIES[0]].items() if t not in _DROPPED}
    return kept.tobytes() if len(kept) else None
