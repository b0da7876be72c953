"""Photos of ``ipt-fast restore`` through the network: one by one, or windows of several in the same batches."""

import time
from collections.abc import Sequence
from dataclasses import replace

from ipt_fast.cli._restore_image import Output, Photo, Progress, Way, memory_notes, restored_together, through_network
from ipt_fast.cli._restore_plan import Job
from ipt_fast.cli._restore_video import restore_video
from ipt_fast.io.video import is_video

FAILURES = (OSError, RuntimeError, MemoryError)  # what may become of a photo; anything else is a fault of ours


def through(photos: Sequence[Photo], way: Way, progress: Progress) -> list[Output | str | Exception]:
    """Return what becomes of each: its output, of a video the line that says so, or why it failed."""
    done: dict[Job, Output] = {}
    notes: tuple[str, ...] = ()
    stills = [photo for photo in photos if not is_video(photo.job.source)]
    if len(stills) > 1:
        try:
            done = {output.photo.job: output for output in _together(stills, way, progress)}
        except FAILURES as error:  # of one of them, perhaps, which is seen where each goes alone
            notes = (f"alone, as {len(stills)} photos together failed: {first_line(error)}",)
    return [done.get(photo.job) or _alone(photo, way, _silent if notes else progress, notes) for photo in photos]


def _together(photos: Sequence[Photo], way: Way, progress: Progress) -> list[Output]:
    start, frames = time.perf_counter(), [frame.pixels for photo in photos for frame in photo.frames]
    pixels = sum(frame[..., 0].size for frame in frames)

    def done(share: float) -> None:
        progress(share * len(photos), share * len(frames), share * pixels)

    with memory_notes() as said:
        restored = iter(restored_together(frames, way, done))
    seconds = time.perf_counter() - start
    outputs: list[Output] = []
    for photo in photos:
        share = sum(frame.pixels[..., 0].size for frame in photo.frames) / pixels
        notes = () if outputs else tuple(said)  # of all, beside the first
        outputs.append(Output(photo, [next(restored) for _ in photo.frames], notes, photo.seconds + share * seconds))
    return outputs


def _alone(photo: Photo, way: Way, progress: Progress, notes: tuple[str, ...]) -> Output | str | Exception:
    try:
        if is_video(photo.job.source):
            return restore_video(photo.job, way, progress)
        output = through_network(photo, way, progress)
        return replace(output, notes=(*output.notes, *notes))
    except Exception as error:  # reported, or raised there
        return error


def _silent(share: float, images: float, pixels: float) -> None:
    """Show no progress a second time."""


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
