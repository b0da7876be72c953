"""A video of ``ipt-fast restore``."""

import time

from ipt_fast.cli._restore_image import Progress, Way, memory_notes, scaled
from ipt_fast.cli._restore_plan import Job
from ipt_fast.io.video import convert_video


def restore_video(job: Job, way: Way, progress: Progress) -> str:
    """Restore all its frames, write them, and return the line that says so."""
    start = time.perf_counter()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with memory_notes() as said:
        before, after, notes = convert_video(
            job.source,
            job.target,
            lambda pixels: scaled(pixels, way),
            force=way.args.force,
            progress=lambda share, pixels: progress(share, 1, pixels),
        )
    notes = *notes, *said
    (width, height), (wide, high), seconds = before, after, time.perf_counter() - start
    return f"{job.source} {width}x{height} -> {job.target} {wide}x{high}, {seconds:.1f} s ({'; '.join(notes)})"
