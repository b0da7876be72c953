"""``ipt-fast restore``: photos in, restored photos out."""

import argparse
import os
from concurrent.futures import Future
from fractions import Fraction
from pathlib import Path

from ipt_fast.checkpoint import PRETRAINED
from ipt_fast.cli import CommandError, user_errors
from ipt_fast.cli._network import add_network_arguments, pick_task, prepare
from ipt_fast.cli._restore_image import Output, Photo, Way, read, write
from ipt_fast.cli._restore_pace import Pace
from ipt_fast.cli._restore_photos import FAILURES, first_line, through
from ipt_fast.cli._restore_pipeline import in_three_steps
from ipt_fast.cli._restore_plan import Job, Naming, make_plan
from ipt_fast.io.images import pillow_set
from ipt_fast.io.progress import message_console, progress_bar
from ipt_fast.io.video import is_video, load_av
from ipt_fast.io.write import WRITABLE
from ipt_fast.tasks import get_task

EXAMPLE = """examples:
  ipt-fast restore photo.jpg -o clean.png --task denoise30
  ipt-fast restore photo.jpg -o photo_x2.png --task sr2 --checkpoint IPT_pretrain.pt
  ipt-fast restore noisy/ 'more/*.png' -o clean/ --task denoise30 --checkpoint runs/tiny/checkpoint.pt --compare
  ipt-fast restore photo.jpg -o photo_x3.png --task sr4 --outscale 3 --checkpoint IPT_pretrain.pt
  ipt-fast restore clip.mp4 -o clip_x2.mp4 --task sr2 --checkpoint IPT_pretrain.pt --bf16
  ipt-fast restore photos/ -o photos/ --suffix _x2 --ext .jpg --quality 90 --task sr2 --checkpoint IPT_pretrain.pt
colour profile, EXIF data, alpha, frames (PNG, WebP), 16 bits (PNG, TIFF) and floats (TIFF) go with an image
what an output cannot hold is said beside its name
exit codes: 0 all restored, 1 some images failed (each is named), 2 wrong usage or input, 130 and 143 stopped"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast restore``."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IN", help="image files, folders (nested too), globs, videos")
    add(
        "-o", "--out", required=True, metavar="OUT",
        help="a file for one image, otherwise a folder (as one with / at the end is)",
    )  # fmt: skip
    add("--task", help="sr2, sr3, sr4, derain, denoise<sigma>, deblur (default: that of a file with one task)")
    add(
        "--checkpoint", type=Path, default=Path(PRETRAINED), metavar="FILE",
        help="released, own or safetensors (default: the network that comes with ipt-fast)",
    )  # fmt: skip
    add = parser.add_argument_group("outputs").add_argument
    add("--compare", action="store_true", help="also write NAME.compare.png: input | output")
    add(
        "--outscale", type=_outscale, metavar="S",
        help="outputs S times as large as inputs (2.5, 3, 8/3), resized bicubically after the network",
    )  # fmt: skip
    add("--suffix", default="", metavar="TEXT", help="outputs in a folder are NAME<TEXT>.png")
    add("--ext", default=".png", metavar="EXT", help="kind of the outputs in a folder: .png (default), .jpg, ..., same")
    add("--quality", type=int, metavar="N", help="1 to 100, of JPEG (default 95), AVIF (90) and WebP (without loss)")
    add("--force", action="store_true", help="overwrite files that are there")
    add("--skip-existing", action="store_true", help="leave out images whose output is there")
    group = add_network_arguments(parser, precision="auto")
    group.add_argument("--tile", type=int, metavar="PX", help="side of a window: the network's own, it has no other")
    group.add_argument(
        "--batch-photos", type=int, default=1, metavar="N",
        help="photos whose windows share batches (default 1): for small photos on a GPU; outputs differ by rounding",
    )  # fmt: skip
    group.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="threads that read photos ahead, and as many that write (default 1; 0: one photo after the other)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Restore every image; images that cannot be read are named and left out."""
    naming = _naming(args)
    console = message_console()
    options = {"force": args.force, "skip_existing": args.skip_existing, "quality": args.quality}
    with user_errors(OSError):
        plan = make_plan(args.images, args.out, naming, **options)
    failed = [f"{folder}: {reason}" for folder, reason in plan.unreadable]
    videos = any(is_video(job.source) for job in plan.jobs)
    if videos:
        with user_errors(ImportError):
            load_av()
    count = f"{len(plan.jobs)} {'file' if videos else 'image'}{'s' * (len(plan.jobs) != 1)}"
    for line in [*plan.notes, *(f"failed: {line}" for line in failed)]:
        console.print(line)
    if plan.jobs:
        way, said = _way(args)
        console.print(f"{count}, {said}")
    done = reported = 0

    def report(job: Job, outcome: "Future[str]") -> None:
        nonlocal done, reported
        reported += 1
        advance(done=reported)
        try:
            console.print(outcome.result())
            done += 1
        except FAILURES as error:
            text = first_line(error)
            failed.append(text if str(job.source) in text else f"{job.source}: {text}")
            console.print(f"failed: {failed[-1]}")

    try:
        with pillow_set(args.max_pixels), progress_bar("", len(plan.jobs), console) as advance:
            pace = Pace()

            def work(photos: list[Photo]) -> list[Output | str | Exception]:
                others = f" and {len(photos) - 1} more" * (len(photos) > 1)
                advance(0, photos[0].job.source.name + others)

                def progress(share: float, images: float, pixels: float) -> None:
                    pace.add(images, pixels)
                    advance(share, note=pace.rate())

                return through(photos, way, progress)

            steps = read, work, lambda output: write(output, way), report
            in_three_steps(plan.jobs, *steps, args.jobs, args.batch_photos)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{done} of {count} restored") from None
    if done > 1:
        console.print(pace.total())
    if failed and len(plan.jobs) > 1:
        console.print(f"{len(failed)} of {len(plan.jobs) + len(plan.unreadable)} images failed:")
        for line in failed:
            console.print(f"  {line}")
    return 1 if failed else 0


def _naming(args: argparse.Namespace) -> Naming:
    ext = args.ext.lower()
    ext = ext if ext == "same" or ext.startswith(".") else f".{ext}"
    if ext != "same" and ext not in WRITABLE:
        raise CommandError(f"--ext {args.ext} is not a kind that can be written; give one of {' '.join(WRITABLE)} same")
    if os.sep in args.suffix:
        raise CommandError(f"--suffix {args.suffix} holds a {os.sep}; it is the end of a file's name")
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise CommandError(f"--quality must be 1 to 100, got {args.quality}")
    if not 0 <= args.jobs <= 64:
        raise CommandError(f"--jobs must be 0 to 64 threads, got {args.jobs}")
    if not 1 <= args.batch_photos <= 4096:
        raise CommandError(f"--batch-photos must be 1 to 4096 photos, got {args.batch_photos}")
    if args.force and args.skip_existing:
        raise CommandError("--force overwrites what --skip-existing leaves alone; give one of them")
    return Naming(args.suffix, ext, args.compare)


def _outscale(text: str) -> Fraction:
    try:
        scale = Fraction(text)
    except (ValueError, ZeroDivisionError):
        scale = Fraction(0)
    if not Fraction(1, 10) <= scale <= 16 or scale.denominator > 1000:
        raise argparse.ArgumentTypeError(f"{text} is no scale; give a number from 0.1 to 16, as 2.5 or 8/3")
    return scale


def _way(args: argparse.Namespace) -> tuple[Way, str]:
    """Return the prepared network with what is done to each photo, and say it."""
    network, name, task = prepare(args.checkpoint, args.task and pick_task(args.task), args)
    size, scale = network.config.patch_size, get_task(name).scale
    if args.tile not in (None, size):
        raise CommandError(
            f"--tile {args.tile}: this network takes windows of {size}x{size} pixels and no others, as its position "
            f"embedding belongs to them; give --tile {size} or none, for less memory a --batch-size"
        )
    where = f"{next(network.parameters()).device.type}, {str(network.dtype).removeprefix('torch.')}"
    said = f"{task.name}, {where}, {args.stitch}"
    if args.outscale not in (None, scale):
        said += f", x{scale} and then resized to x{float(args.outscale):g}"
    if args.checkpoint == Path(PRETRAINED):
        said += ", with the network that comes with ipt-fast (--checkpoint takes another)"
    if name != task.name:
        said += f"; the network was not trained for {task.name}, its nearest task is {name}"
    return Way(network, name, args.outscale or Fraction(scale), args), said
