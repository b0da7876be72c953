"""One photo of ``ipt-fast restore`` in three steps: read, through the network, written."""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ipt_fast.cli._network import window_options
from ipt_fast.cli._restore_plan import Job
from ipt_fast.degradations.resize import resize_array
from ipt_fast.inference import restore
from ipt_fast.inference.images import enlarge_alpha
from ipt_fast.inference.prepare import PreparedIPT
from ipt_fast.io.animation import Animation, holds_animation, read_animation, write_animation
from ipt_fast.io.float_tiff import read_float_tiff
from ipt_fast.io.images import LoadedImage, array_to_pil, on_white, read_image, with_alpha
from ipt_fast.io.video import is_video
from ipt_fast.io.write import write_image
from ipt_fast.tasks import get_task

# Called with shares of a job, images (each frame is one) and pixels that are done.
Progress = Callable[[float, float, float], None]


@dataclass(frozen=True)
class Photo:
    """What was read for a job, one image or the frames of an animation, and how long that took."""

    job: Job
    frames: tuple[LoadedImage, ...]
    animation: Animation | None
    seconds: float


@dataclass(frozen=True)
class Output:
    """What the network made of each frame, [rH, rW, 3], and how long it and the reading took."""

    photo: Photo
    frames: list[np.ndarray]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Way:
    """How all photos go: the prepared network, its task, and how many times larger outputs are than inputs."""

    network: PreparedIPT
    task: str
    outscale: Fraction
    args: argparse.Namespace

    @property
    def scale(self) -> int:
        """Return how many times larger the network's outputs are."""
        return get_task(self.task).scale


def read(job: Job) -> Photo:
    """Read the image of a job, all frames of an animation where its output can hold them."""
    start = time.perf_counter()
    animation = read_animation(job.source) if holds_animation(job.target) else None
    frames: tuple[LoadedImage, ...] = ()
    if animation is not None:
        frames = animation.frames
    elif not is_video(job.source):  # whose frames are read one by one, by ``restore_video``
        frames = (read_float_tiff(job.source) or read_image(job.source, deep=True, floats=True),)
    return Photo(job, frames, animation, time.perf_counter() - start)


def through_network(photo: Photo, way: Way, progress: Progress) -> Output:
    """Restore it."""
    start, frames = time.perf_counter(), []
    with memory_notes() as said:
        for frame in photo.frames:
            frames.append(_restored(frame.pixels, way, _of_frame(progress, photo, frame)))
    return Output(photo, frames, tuple(said), photo.seconds + time.perf_counter() - start)


def _of_frame(progress: Progress, photo: Photo, frame: LoadedImage) -> Callable[[float], None]:
    return lambda part: progress(part / len(photo.frames), part, part * frame.pixels[..., 0].size)


@contextmanager
def memory_notes() -> Iterator[list[str]]:
    """Yield a list that holds afterwards what was said of memory that ran out."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield said
    said += dict.fromkeys(str(w.message) for w in caught if "out of memory" in str(w.message))


def scaled(pixels: np.ndarray, way: Way) -> np.ndarray:
    """Restore pixels [H, W, 3], at the scale that was asked for."""
    return _to_outscale(_restored(pixels, way, lambda share: None), way)


def _restored(pixels: np.ndarray, way: Way, progress: Callable[[float], None]) -> np.ndarray:
    """[H, W, 3] -> [rH, rW, 3] of the same dtype; floats are 0..1."""
    options = {"task": way.task, "progress": progress, **window_options(way.args)}
    return _from_network(restore(way.network, _for_network(pixels), **options))


def restored_together(images: list[np.ndarray], way: Way, progress: Callable[[float], None]) -> list[np.ndarray]:
    """[H, W, 3] each -> [rH, rW, 3] each, as one image does, with windows of all in the same batches."""
    options = {"task": way.task, "progress": progress, **window_options(way.args)}
    return [_from_network(out) for out in restore(way.network, [_for_network(image) for image in images], **options)]


def _for_network(pixels: np.ndarray) -> np.ndarray | Tensor:
    return torch.from_numpy(pixels * 255).permute(2, 0, 1) if pixels.dtype == np.float32 else pixels


def _from_network(out: np.ndarray | Tensor) -> np.ndarray:
    return out if isinstance(out, np.ndarray) else np.ascontiguousarray((out / 255).permute(1, 2, 0).numpy())


def write(output: Output | str, way: Way) -> str:
    """Bring it from the network's scale to the one asked for, write it, and return the line that says so.

    Of a video, which is written by then, the output is that line.
    """
    if isinstance(output, str):
        return output
    start = time.perf_counter()
    photo, job, image = output.photo, output.photo.job, output.photo.frames[0]
    frames = [_finished(pixels, frame, way) for pixels, frame in zip(output.frames, photo.frames, strict=True)]
    job.target.parent.mkdir(parents=True, exist_ok=True)
    options = {"force": way.args.force, "metadata": image.metadata}
    notes = [*image.notes, *output.notes]
    if way.outscale != way.scale:
        notes.append(f"resized bicubically from x{way.scale} to x{float(way.outscale):g}")
    if photo.animation is None:
        notes += write_image(frames[0], job.target, quality=way.args.quality, **options)
    else:
        timing = photo.animation.durations, photo.animation.plays
        notes = [f"{len(frames)} frames", *notes]
        notes += write_animation(frames, job.target, *timing, quality=way.args.quality, **options)
    if job.compare is not None:
        write_image(comparison(image.pil(), array_to_pil(frames[0]), way.task, way.outscale), job.compare, **options)
    seconds = output.seconds + time.perf_counter() - start
    (height, width), (high, wide) = image.pixels.shape[:2], frames[0].shape[:2]
    line = f"{job.source} {width}x{height} -> {job.target} {wide}x{high}, {seconds:.1f} s"
    return line + (f" ({'; '.join(notes)})" if notes else "")


def _finished(pixels: np.ndarray, image: LoadedImage, way: Way) -> np.ndarray:
    """Return the pixels at the scale that was asked for, with the alpha of the image that they were made of."""
    pixels = _to_outscale(pixels, way)
    if image.alpha is not None:
        pixels = with_alpha(pixels, _alpha(image.alpha, (pixels.shape[1], pixels.shape[0])))
    return pixels.clip(0, 1) if pixels.dtype == np.float32 else pixels


def _to_outscale(pixels: np.ndarray, way: Way) -> np.ndarray:
    return pixels if way.outscale == way.scale else resize_array(pixels, way.outscale / way.scale)


def _alpha(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if alpha.dtype != np.float32:
        return enlarge_alpha(alpha, size)
    return np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC))


def comparison(before: Image.Image, out: Image.Image, task: str, scale: Fraction) -> Image.Image:
    """Draw input | output in one picture, the input resized bicubically to the size of the output."""
    left, right = (on_white(image) for image in (before, out))
    caption = "input"
    if scale != 1:
        left = Image.fromarray(resize_array(np.array(left), scale))
        caption = f"input, bicubic x{float(scale):g}"
    captions, font = (caption, task), ImageFont.load_default(15)
    gap, top = 8, 26
    step = max(out.width, *(round(font.getlength(text)) for text in captions)) + gap
    picture = Image.new("RGB", (gap + 2 * step, out.height + top + gap), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for x, text, side in ((gap, captions[0], left), (gap + step, captions[1], right)):
        draw.text((x, 4), text, (30, 30, 30), font)
        picture.paste(side, (x, top))
    return picture
