"""The one reader of image files, for training, restoration, evaluation and streak folders.

What becomes of the pixels, everywhere alike (uint8 RGB, 0..255, or uint16 or float32 where the reader is asked for it):

- gray is repeated, palettes and CMYK are converted, of several frames the first is taken;
- colours are those that are stored, also under transparent pixels: alpha is kept apart or dropped, never blended;
- 16 bits a channel are divided by 257 and rounded where 8 are wanted; of colour the upper 8 bits are taken;
- float pixels (gray of 32 bits) are 0..1 where at most one in a hundred is over 1 (those are clipped), 0..255 where at
  least half are and none is over 255, and refused otherwise, as is nan; where floats are wanted they are 0..1;
- EXIF rotation is applied unless the caller wants the photo as stored: training does, as the reference's reader.
"""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from ipt_fast.arguments import Shape, checked
from ipt_fast.io import sixteen_bit
from ipt_fast.io.metadata import Metadata, kept_exif, orientation

_KNOWN = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jp2",
    ".j2k", ".avif",
)  # fmt: skip
# Files that are images by their names: those of the list that Pillow can open here.
SUFFIXES = tuple(suffix for suffix in _KNOWN if Image.registered_extensions().get(suffix) in Image.OPEN)
# What Pillow and simplejpeg raise on bytes that are no proper image; odd EXIF, TIFF and GIF files raise nearly all.
DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
    RuntimeError, MemoryError, SystemError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Alpha = Literal["keep", "drop"]


class ImageError(OSError):
    """A file that is no image, or is damaged; the message names it."""


@dataclass(frozen=True)
class LoadedImage:
    """One image file.

    ``pixels`` uint8, uint16 or float32 0..1 [H, W, 3]; ``alpha`` [H, W] of the same dtype or None; ``notes`` say what
    was changed on the way in; ``metadata`` belongs to the image as it is now.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    notes: tuple[str, ...]
    metadata: Metadata

    def tensor(self) -> Tensor:
        """Return the pixels [3, H, W], 0..255: uint8, or float32 where they had 16 bits."""
        return array_to_tensor(self.pixels)

    def pil(self) -> Image.Image:
        """Return a PIL image, RGB or RGBA, of 8 bits."""
        return array_to_pil(with_alpha(self.pixels, self.alpha))


@checked
def read_image(
    source: str | Path | bytes, *, exif: bool = True, alpha: Alpha = "keep", deep: bool = False, floats: bool = False
) -> LoadedImage:
    """Read an image file, as the head of this module says.

    Args:
        source: a path, or the bytes of a file.
        exif: turn the image upright as its EXIF tag says; False takes it as stored.
        alpha: "keep" it apart from the colours, or "drop" it.
        deep: return 16-bit and float files as uint16; False rounds them to 8 bits.
        floats: return float files as float32 0..1, whatever ``deep`` is.

    Raises:
        FileNotFoundError: no such file.
        ImageError: no image, or a damaged one.
    """
    name = "" if isinstance(source, bytes) else f"{source}: "
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such file")
    try:
        with _open(source) as opened:
            low = _low_bytes(source, opened) if deep else None
            image = from_pil(opened, exif=exif, alpha=alpha, deep=deep, floats=floats, low=low)
            try:
                count = getattr(opened, "n_frames", 1)
                frames = (f"first of {count} frames",) if count > 1 else ()
            except DECODE_ERRORS:
                frames = ("first of several frames, of which others are damaged",)
            return replace(image, notes=frames + image.notes)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}{_what_it_is(source)}") from error
    except DECODE_ERRORS as error:
        raise ImageError(f"{name}cannot be read ({decode_reason(error)})") from error


def _open(source: str | Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _low_bytes(source: str | Path | bytes, opened: Image.Image) -> Image.Image | None:
    """Return an image of the lower bytes of 16-bit colour; None for other files, and where that cannot be had."""
    if not sixteen_bit.is_sixteen_bit_colour(opened) or "transparency" in opened.info:
        return None
    with _open(source) as low, suppress(*DECODE_ERRORS):
        if sixteen_bit.low_bytes(low):
            low.load()
            return low
    return None


def _what_it_is(source: str | Path | bytes) -> str:
    """Name a file that Pillow does not open as an image."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        return "the file is empty (zero bytes)"
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        with io.BytesIO(data) as file:
            file.seek(tags.next)
            tags.load(file)
        bits, kinds = (tags.get(tag, (1,)) for tag in (TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.SAMPLEFORMAT))
        number = {2: "signed integers", 3: "floats"}.get(kinds[0], "integers")
        channels = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        return f"a TIFF of {channels} channels of {bits[0]}-bit {number}, which is not read; save it with 16 bits"
    except DECODE_ERRORS:
        return "not an image"


def decode_reason(error: BaseException) -> str:
    """Say in a few words why an image could not be decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return _too_many(*map(int, re.findall(r"\d+", str(error))))
    return str(error).splitlines()[0][:120] if str(error) else "damaged"


def refuse_too_many(path: Path | str, pixels: int) -> None:
    """Refuse what Pillow would, for readers that do without it.

    Raises:
        ImageError: more pixels than ``pillow_set`` or PIL.Image.MAX_IMAGE_PIXELS allow.
    """
    if pixels > most_pixels():
        raise ImageError(f"{path}: cannot be read ({_too_many(pixels, most_pixels())})")


def most_pixels() -> float:
    """Return how many pixels Pillow would open now."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _too_many(pixels: float, limit: float) -> str:
    way_on = "restore and eval have --max-pixels, a program PIL.Image.MAX_IMAGE_PIXELS"
    return f"{pixels:,} pixels, more than {limit:,}; {way_on}"


def from_pil(
    image: Image.Image,
    *,
    exif: bool = True,
    alpha: Alpha = "keep",
    deep: bool = False,
    floats: bool = False,
    low: Image.Image | None = None,
) -> LoadedImage:
    """Convert a PIL image of any mode, as the head of this module says; ``low`` holds the lower bytes of 16-bit colour.

    Raises:
        one of DECODE_ERRORS: its file is damaged; ValueError: pixels without a defined range.
    """
    notes: list[str] = []
    if sixteen_bit.is_misread(image):
        raise ValueError("16-bit colour in separate planes, which Pillow misreads; save it with the channels together")
    if low is not None:
        notes.append("16 bits a channel")
    elif sixteen_bit.is_sixteen_bit_colour(image):  # known until it is loaded
        notes.append("16 bits a channel, of which Pillow reads the upper 8")
    profile = image.info.get("icc_profile")
    if profile and profile[16:20] != b"RGB ":
        profile = None
        notes.append("its colour profile is not one of RGB and is left out")
    turn = kept = None
    try:
        turn = UPRIGHT.get(orientation(image)) if exif else None
        kept = kept_exif(image) if exif else None
    except DECODE_ERRORS:
        notes.append("its EXIF data are damaged and left out" + "" if turn else ", so it is taken as stored")
    if turn is not None:
        image, low = image.transpose(turn), low and low.transpose(turn)
        notes.append("turned upright as its EXIF tag says")
    if image.mode in ("1", "L", "LA"):
        notes.append("gray")
    elif image.mode == "CMYK":
        notes.append("CMYK, converted")
    opacity = None
    if image.mode.startswith(("I", "F")):
        values = _floats(image, deep, floats, notes) if image.mode == "F" else _integers(image, deep, notes)
        pixels = np.repeat(values[..., None], 3, axis=2)
    else:
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
        pixels = np.array(image if image.mode == "RGBA" else image.convert("RGB"))
        if low is not None:
            pixels = pixels.astype(np.uint16) << 8 | np.array(low)
        if pixels.shape[2] == 4:
            opacity = pixels[..., 3] if alpha == "keep" else None
            pixels = np.ascontiguousarray(pixels[..., :3])
    return LoadedImage(pixels, opacity, tuple(notes), Metadata(profile, kept))


def _integers(image: Image.Image, deep: bool, notes: list[str]) -> np.ndarray:
    """Return 16-bit gray as uint16 or uint8 [H, W]; Pillow's own conversion would clip it."""
    values = np.array(image).astype(np.float64)
    smallest, largest = values.min(), values.max()
    if smallest < 0 or largest > 65535:
        raise ValueError(f"integer pixels {smallest:.0f}..{largest:.0f}; needed are those of 16 bits, 0..65535")
    notes.append("16 bits a channel" + ("" if deep else ", rounded to 8"))
    return _to_bits(values, 65535, deep)


def _floats(image: Image.Image, deep: bool, floats: bool, notes: list[str]) -> np.ndarray:
    """Return float gray as float32 0..1, uint16 or uint8 [H, W]."""
    values = np.array(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("float pixels that are nan or infinite")
    over, largest = float((values > 1).mean()), values.max()
    if 0.01 < over < 0.5 or (over >= 0.5 and largest > 255):
        raise ValueError(
            f"float pixels of no defined range, {over:.0%} over 1 and up to {largest:g}; needed are 0..1 or 0..255"
        )
    top = 1 if over <= 0.01 else 255
    kept = "gray, 32-bit floats" if floats else f"taken to {16 if deep else 8} bits"
    clipped = "; others clipped" if values.min() < 0 or largest > top else ""
    notes.append(f"float values 0..{top}, {kept}{clipped}")
    return (values / top).clip(0, 1).astype(np.float32) if floats else _to_bits(values, top, deep)


def _to_bits(values: np.ndarray, top: int, deep: bool) -> np.ndarray:
    """Round values 0..top to uint16 or uint8, all of its range."""
    highest = 65535 if deep else 255
    return np.clip(np.rint(values * (highest / top)), 0, highest).astype(np.uint16 if deep else np.uint8)


def with_alpha(pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Return [H, W, 4], or the pixels as they are where there is no alpha."""
    return pixels if alpha is None else np.dstack([pixels, alpha])


def on_white(image: Image.Image) -> Image.Image:
    """Return an RGB image; what is transparent is laid on white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def array_to_pil(image: np.ndarray) -> Image.Image:
    """Convert uint8, uint16 or float32 0..1 [H, W, 3 or 4] to a PIL image of 8 bits."""
    if image.dtype == np.float32:
        return Image.fromarray(np.rint(image * 255).astype(np.uint8))
    return Image.fromarray(np.rint(image / 257).astype(np.uint8) if image.dtype == np.uint16 else image)


@checked
def array_to_tensor(image: np.ndarray) -> Tensor:
    """Convert uint8 [H, W, 3], [H, W] or [H, W, 1] to a uint8 tensor [3, H, W]; gray is repeated.

    uint16 becomes float32, 0..255 too.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or image.size == 0:
        given = f"{image.dtype} {list(image.shape)}"
        raise ValueError(f"needs a uint8 image [H, W, 3] or [H, W], or a uint16 one, got {given}")
    if image.ndim == 2 or image.shape[2] == 1:
        image = image.reshape(*image.shape[:2], 1).repeat(3, axis=2)
    if image.shape[2] != 3:
        raise ValueError(f"needs an image of 1 or 3 channels, got {list(image.shape)}; keep the alpha channel apart")
    if image.dtype == np.uint16:
        image = image.astype(np.float32) / 257
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


@checked
def to_uint8(image: Annotated[Tensor, Shape("3 H W", held=True)]) -> np.ndarray:
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


@contextmanager
def pillow_set(max_pixels: int | None = None) -> Iterator[None]:
    """Let Pillow open images of up to ``max_pixels``, and keep its warnings to itself; afterwards all is as before.

    For the main thread of a program; see ``silence_pillow_warnings``.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        silence_pillow_warnings()
        try:
            if max_pixels is not None:
                Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # it warns from here on, and refuses twice as many
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
