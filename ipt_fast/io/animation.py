"""Animations: all frames of a GIF, PNG, WebP or AVIF file, and PNG and WebP files of several frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ipt_fast.io.atomic import atomic_path
from ipt_fast.io.images import (
    DECODE_ERRORS,
    ImageError,
    LoadedImage,
    array_to_pil,
    decode_reason,
    from_pil,
    most_pixels,
)
from ipt_fast.io.metadata import Metadata

_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # a TIFF of several pages is none, nor is a camera's file of two photos
_WRITABLE = ("PNG", "WEBP")


@dataclass(frozen=True)
class Animation:
    """Frames of one size, all or none with alpha; how long each is shown, in milliseconds; 0 ``plays`` is for ever."""

    frames: tuple[LoadedImage, ...]
    durations: tuple[float, ...]
    plays: int


def holds_animation(path: Path) -> bool:
    """Return whether a file of this name is written with all frames."""
    return Image.registered_extensions().get(path.suffix.lower()) in _WRITABLE


def read_animation(path: Path) -> Animation | None:
    """Read all frames of an animation; None where the file is anything else, or no image at all.

    Raises:
        ImageError: a damaged frame, or more pixels in all than one image may have.
    """
    try:
        with Image.open(path) as opened:
            count = getattr(opened, "n_frames", 1)
            if opened.format not in _ANIMATED or count < 2:
                return None
    except DECODE_ERRORS:
        return None  # whoever reads its first frame says why
    frames: list[LoadedImage] = []
    durations = []
    try:
        with Image.open(path) as opened:
            first = int(bool(opened.info.get("default_image")))  # a still image before the frames
            if count * opened.width * opened.height > most_pixels():
                size = f"{count} frames of {opened.width}x{opened.height} pixels"
                raise ImageError(f"{path}: {size} are more than {most_pixels():,}; restore has --max-pixels")
            for number in range(first, count):
                opened.seek(number)
                frames.append(from_pil(opened))
                durations.append(float(opened.info.get("duration", 0)))
            plays = _plays(opened)
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(f"{path}: cannot be read (frame {len(frames) + 1}: {decode_reason(error)})") from error
    if any(frame.alpha is not None for frame in frames):
        opaque = np.full(frames[0].pixels.shape[:2], 255, np.uint8)
        frames = [frame if frame.alpha is not None else replace(frame, alpha=opaque) for frame in frames]
    return Animation(tuple(frames), tuple(durations), plays)


def _plays(opened: Image.Image) -> int:
    loop = opened.info.get("loop")
    if opened.format == "GIF":  # which counts repetitions
        return 1 if loop is None else loop and loop + 1
    return loop or 0


def write_animation(
    frames: Sequence[np.ndarray],
    path: Path,
    durations: Sequence[float],
    plays: int,
    *,
    force: bool = True,
    metadata: Metadata | None = None,
    quality: int | None = None,
) -> tuple[str, ...]:
    """Write uint8 frames [H, W, 3 or 4] as an animated PNG or WebP, whole or not at all.

    Args:
        frames: all of one shape.
        path: a name for which ``holds_animation``.
        durations: of each frame, in milliseconds.
        plays: how often; 0 is for ever.
        force: replace a file that is there.
        metadata: what goes with it.
        quality: 1 to 100, of WebP; None is without loss.

    Returns:
        What the format could not keep, as notes.

    Raises:
        FileExistsError: ``path`` is there, and not ``force``.
        OSError: it cannot be written, or this kind of file cannot hold it.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    options, notes = (metadata or Metadata()).options(kind)
    if kind == "WEBP":
        options |= {"lossless": True} if quality is None else {"quality": quality}
        durations = [round(duration) for duration in durations]
    images = [array_to_pil(frame) for frame in frames]
    options |= {"save_all": True, "append_images": images[1:], "duration": list(durations), "loop": plays}
    with atomic_path(path, force=force) as temporary:
        try:
            images[0].save(temporary, kind, **options)
        except OSError:
            raise
        except DECODE_ERRORS as error:
            raise OSError(f"{path}: {len(frames)} frames cannot be written so ({error})") from error
    return notes
