"""Image files in and out: any mode that Pillow reads becomes RGB 0..255, with what is special about it kept or said."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")


class ImageError(OSError):
    """A file that is no image, or is damaged; the message names it."""


@dataclass(frozen=True)
class LoadedImage:
    """One image file, upright.

    ``pixels`` uint8 [H, W, 3]; ``alpha`` uint8 [H, W] or None; ``notes`` say what was changed on the way in.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    notes: tuple[str, ...]

    def tensor(self) -> Tensor:
        """The pixels as uint8 [3, H, W]."""
        return array_to_tensor(self.pixels)

    def pil(self) -> Image.Image:
        """As a PIL image, RGB or RGBA."""
        image = Image.fromarray(self.pixels)
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        return image


def read_image(path: Path) -> LoadedImage:
    """Read an image file: EXIF rotation applied, gray repeated to RGB, palette and CMYK converted, alpha kept apart.

    16-bit values are divided by 257 and rounded, which is said in the notes; of animations the first frame is taken.

    Raises:
        FileNotFoundError: no such file.
        ImageError: no image, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with Image.open(path) as opened:
            image = from_pil(opened)
        if _sixteen_bit_rgb(path):
            return replace(image, notes=(*image.notes, "16 bits a channel, of which Pillow reads the upper 8"))
        return image
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{path}: cannot be read ({str(error).splitlines()[0][:120] if str(error) else 'damaged'})"
        ) from error


def from_pil(image: Image.Image) -> LoadedImage:
    """A PIL image of any mode, changed as ``read_image`` says."""
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"first of {image.n_frames} frames")  # type: ignore[attr-defined]
    upright = ImageOps.exif_transpose(image)
    if image.getexif().get(0x0112, 1) not in (0, 1):
        notes.append("turned upright as its EXIF tag says")
    if upright.mode.startswith(("I", "F")):
        upright = _to_eight_bits(upright, notes)
    elif upright.mode in ("1", "L", "LA"):
        notes.append("gray")
    elif upright.mode == "CMYK":
        notes.append("CMYK, converted")
    alpha = None
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        alpha = np.array(upright.getchannel("A"))
    return LoadedImage(np.array(upright.convert("RGB")), alpha, tuple(notes))


def _sixteen_bit_rgb(path: Path) -> bool:
    """A PNG of 16 bits a channel in colour; byte 24 of its header is the depth, byte 25 the kind."""
    with open(path, "rb") as file:
        header = file.read(26)
    return header[:8] == b"\x89PNG\r\n\x1a\n" and len(header) == 26 and header[24] == 16 and header[25] in (2, 4, 6)


def _to_eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit and float gray images as 8-bit gray; Pillow's own conversion would clip them."""
    values = np.array(image).astype(np.float64)
    if image.mode == "F":
        top = 1.0 if values.max(initial=0) <= 1 else 255.0
        notes.append(f"float values 0..{top:g}, taken to 8 bits")
        values = values * (255 / top)
    else:
        notes.append("16 bits a channel, rounded to 8")
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def array_to_tensor(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3], [H, W] or [H, W, 1] -> uint8 tensor [3, H, W]; gray is repeated.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"needs a uint8 image [H, W, 3] or [H, W], got {image.dtype} {list(image.shape)}")
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] == 1:
        image = image.repeat(3, axis=2)
    if image.shape[2] != 3:
        raise ValueError(f"needs an image of 1 or 3 channels, got {list(image.shape)}; keep the alpha channel apart")
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def to_uint8(image: Tensor) -> np.ndarray:
    """A float tensor [3, H, W] as uint8 [H, W, 3]: clamped and rounded."""
    return image.clamp(0, 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()


def read_rgb(path: Path) -> Tensor:
    """One image file as uint8 [3, H, W], upright, without alpha."""
    return read_image(path).tensor()


def image_files(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
