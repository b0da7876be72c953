"""The one reader of image files, for training, restoration, evaluation and streak folders; and the writer.

What becomes of the pixels, everywhere alike (uint8 RGB, 0..255):

- gray is repeated, palettes and CMYK are converted, of several frames the first is taken;
- colours are those that are stored, also under transparent pixels: alpha is kept apart or dropped, never blended;
- 16 bits a channel are divided by 257 and rounded; of 16-bit colour Pillow itself reads the upper 8 bits alone;
- float pixels are 0..1 where at most one in a hundred is over 1 (those are clipped), 0..255 where at least half are and
  none is over 255, and refused otherwise, as is nan;
- EXIF rotation is applied unless the caller wants the photo as stored: training does, as the reference's reader.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.io.atomic import atomic_path

_KNOWN = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jp2",
    ".j2k", ".avif",
)  # fmt: skip
# Files that are images by their names: those of the list that Pillow can open here.
SUFFIXES = tuple(suffix for suffix in _KNOWN if Image.registered_extensions().get(suffix) in Image.OPEN)
# What Pillow and simplejpeg raise on bytes that are no proper image; odd EXIF, TIFF and GIF files raise nearly all.
DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
    RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WITHOUT_ALPHA = ("JPEG", "BMP", "PPM")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}

Alpha = Literal["keep", "drop"]


class ImageError(OSError):
    """A file that is no image, or is damaged; the message names it."""


@dataclass(frozen=True)
class LoadedImage:
    """One image file.

    ``pixels`` uint8 [H, W, 3]; ``alpha`` uint8 [H, W] or None; ``notes`` say what was changed on the way in;
    ``icc_profile`` is the file's colour profile where it is one of RGB.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    notes: tuple[str, ...]
    icc_profile: bytes | None = None

    def tensor(self) -> Tensor:
        """Return the pixels as uint8 [3, H, W]."""
        return array_to_tensor(self.pixels)

    def pil(self) -> Image.Image:
        """Return a PIL image, RGB or RGBA."""
        image = Image.fromarray(self.pixels)
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        return image


@checked
def read_image(source: str | Path | bytes, *, exif: bool = True, alpha: Alpha = "keep") -> LoadedImage:
    """Read an image file, as the head of this module says.

    Args:
        source: a path, or the bytes of a file.
        exif: turn the image upright as its EXIF tag says; False takes it as stored.
        alpha: "keep" it apart from the colours, or "drop" it.

    Raises:
        FileNotFoundError: no such file.
        ImageError: no image, or a damaged one.
    """
    name = "" if isinstance(source, bytes) else f"{source}: "
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = from_pil(opened, exif=exif, alpha=alpha)
            try:
                count = getattr(opened, "n_frames", 1)
                frames = (f"first of {count} frames",) if count > 1 else ()
            except DECODE_ERRORS:
                frames = ("first of several frames, of which others are damaged",)
            return replace(image, notes=frames + image.notes)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}not an image") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"{name}cannot be read ({decode_reason(error)})") from error


def decode_reason(error: BaseException) -> str:
    """Say in a few words why an image could not be decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; PIL.Image.MAX_IMAGE_PIXELS sets the limit"
    return str(error).splitlines()[0][:120] if str(error) else "damaged"


def from_pil(image: Image.Image, *, exif: bool = True, alpha: Alpha = "keep") -> LoadedImage:
    """Convert a PIL image of any mode, as the head of this module says.

    Raises:
        one of DECODE_ERRORS: its file is damaged; ValueError: pixels without a defined range.
    """
    notes: list[str] = []
    if ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I"):  # known until it is loaded
        notes.append("16 bits a channel, of which Pillow reads the upper 8")
    profile = image.info.get("icc_profile")
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1)) if exif else None
    except DECODE_ERRORS:
        turn = None
        notes.append("its EXIF data are damaged, so it is taken as stored")
    if turn is not None:
        image = image.transpose(turn)
        notes.append("turned upright as its EXIF tag says")
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image, notes)
    elif image.mode in ("1", "L", "LA"):
        notes.append("gray")
    elif image.mode == "CMYK":
        notes.append("CMYK, converted")
    opacity = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        opacity = np.array(image.getchannel("A")) if alpha == "keep" else None
    if profile and profile[16:20] != b"RGB ":
        profile = None
        notes.append("its colour profile is not one of RGB and is left out")
    return LoadedImage(np.array(image.convert("RGB")), opacity, tuple(notes), profile)


def _to_eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit and float gray images as 8-bit gray; Pillow's own conversion would clip them."""
    values = np.array(image).astype(np.float64)
    smallest, largest = values.min(), values.max()
    if image.mode != "F":
        if smallest < 0 or largest > 65535:
            raise ValueError(f"integer pixels {smallest:.0f}..{largest:.0f}; needed are those of 16 bits, 0..65535")
        top = 65535
        notes.append("16 bits a channel, rounded to 8")
    else:
        if not np.isfinite(values).all():
            raise ValueError("float pixels that are nan or infinite")
        over = float((values > 1).mean())
        if 0.01 < over < 0.5 or (over >= 0.5 and largest > 255):
            raise ValueError(
                f"float pixels of no defined range, {over:.0%} over 1 and up to {largest:g}; needed are 0..1 or 0..255"
            )
        top = 1 if over <= 0.01 else 255
        notes.append(f"float values 0..{top}, taken to 8 bits" + ("; larger ones clipped" if largest > top else ""))
    return Image.fromarray(np.clip(np.rint(values * (255 / top)), 0, 255).astype(np.uint8))


@checked
def write_image(
    image: Image.Image, path: Path, *, force: bool = True, icc_profile: bytes | None = None
) -> tuple[str, ...]:
    """Write an image whole or not at all, in the format of the name's suffix; JPEG at quality 95, WebP without loss.

    Returns:
        What the format could not keep, as notes.

    Raises:
        FileExistsError: ``path`` is there, and not ``force``.
        OSError: it cannot be written.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    notes: tuple[str, ...] = ()
    if kind in _WITHOUT_ALPHA and image.mode == "RGBA":
        notes = ("alpha channel dropped, this kind of file has none",)
        image = image.convert("RGB")
    options = dict(_SAVE_OPTIONS.get(kind, {}))
    if icc_profile is not None:
        options["icc_profile"] = icc_profile
        if kind not in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF"):
            notes += ("colour profile dropped, this kind of file has none",)
    with atomic_path(path, force=force) as temporary:
        image.save(temporary, kind, **options)
    return notes


@checked
def array_to_tensor(image: np.ndarray) -> Tensor:
    """Convert uint8 [H, W, 3], [H, W] or [H, W, 1] to a uint8 tensor [3, H, W]; gray is repeated.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"needs a uint8 image [H, W, 3] or [H, W], got {image.dtype} {list(image.shape)}")
    if image.ndim == 2 or image.shape[2] == 1:
        image = image.reshape(*image.shape[:2], 1).repeat(3, axis=2)
    if image.shape[2] != 3:
        raise ValueError(f"needs an image of 1 or 3 channels, got {list(image.shape)}; keep the alpha channel apart")
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


@checked
def to_uint8(image: Tensor) -> np.ndarray:
    """Convert a float tensor [3, H, W] to uint8 [H, W, 3]: clamped and rounded."""
    return image.clamp(0, 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


@checked
def read_rgb(path: str | Path) -> Tensor:
    """Read one image file as uint8 [3, H, W], upright, without alpha."""
    return read_image(path, alpha="drop").tensor()


def silence_pillow_warnings() -> None:
    """Let Pillow's own warnings pass unseen from now on: odd EXIF or palettes in one of a million photos are no news.

    For processes that read many photos, from many threads: ``warnings.catch_warnings`` in one of them could swallow
    the warnings of all others, for good.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
