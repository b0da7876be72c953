"""``ipt-fast restore``: photos in, restored photos out."""

import argparse
import glob
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ipt_fast.cli import CommandError

EXAMPLE = """examples:
  ipt-fast restore photo.jpg -o photo_x2.png --task sr2 --checkpoint IPT_pretrain.pt
  ipt-fast restore noisy/ 'more/*.png' -o clean/ --task denoise30 --checkpoint runs/tiny/checkpoint.pt --compare
exit codes: 0 all restored, 1 some images failed (each is named), 2 wrong usage or input"""


@dataclass(frozen=True)
class Job:
    """One image: where it comes from and where it goes."""

    source: Path
    target: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ipt-fast restore``."""
    from ipt_fast.cli._network import add_network_arguments

    parser.add_argument("images", nargs="+", metavar="IN", help="image files, folders (nested too) or globs")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT",
        help="a file for one image, otherwise a folder; images are PNG unless OUT says otherwise",
    )  # fmt: skip
    parser.add_argument("--task", required=True, help="sr2, sr3, sr4, derain, denoise<sigma>, deblur")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="released, own or safetensors")
    parser.add_argument("--compare", action="store_true", help="also write NAME.compare.png: input | output")
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    add_network_arguments(parser, precision="auto")


def run(args: argparse.Namespace) -> int:
    """Restore every image; images that cannot be read are named and left out."""
    from ipt_fast.cli._network import check_windows, load_for_task, pick_device, pick_precision, pick_task
    from ipt_fast.inference import prepare_for_inference
    from ipt_fast.io.images import silence_pillow_warnings

    silence_pillow_warnings()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    jobs, left_out = plan(args.images, args.out)
    _refuse_to_overwrite(jobs, args)
    task = pick_task(args.task)
    device = pick_device(args.device)
    dtype = pick_precision(args.precision, device)
    model, name = load_for_task(args.checkpoint, task, device)
    check_windows(args, model.config.patch_size)
    network = prepare_for_inference(model, name, dtype)
    precision = str(dtype).removeprefix("torch.")
    said = f"{len(jobs)} image{'s' * (len(jobs) != 1)}, {task.name}, {device.type}, {precision}, {args.stitch}"
    if name != task.name:
        said += f"; the network was not trained for {task.name}, its nearest task is {name}"
    console.print(said, markup=False)
    if left_out:
        console.print(f"left out: {left_out} files that are no images by their names", markup=False)
    failed = 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    # On a terminal a bar; into a file one line an image.
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(bar, description=job.source.name)
            try:
                console.print(_restore_one(job, network, name, args), markup=False)
            except (OSError, RuntimeError) as error:
                failed += 1
                console.print(f"failed: {_one_line(error, job.source)}", markup=False)
            progress.advance(bar)
    if failed:
        console.print(f"{failed} of {len(jobs)} images failed")
    return 1 if failed else 0


def plan(inputs: list[str], out: Path) -> tuple[list[Job], int]:
    """Decide which image goes where, and count the files of folders that are no images.

    Files of a folder keep their place below it; OUT itself is not entered. A single file may be given the name of its
    output.

    Raises:
        CommandError: nothing found, a name that is no image, two images with one output, or one output for many.
    """
    from ipt_fast.io.images import SUFFIXES
    from ipt_fast.io.scan import find_images

    found: list[tuple[Path, Path]] = []  # the image, and its place below OUT
    left_out = 0
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            scan = find_images(path, shards=False)
            for folder, reason in scan.unreadable:
                raise CommandError(f"{folder}: {reason}")
            inside = [p for p in (Path(image.path) for image in scan.images) if out == path or out not in p.parents]
            if not inside:
                raise CommandError(f"{path}: no images in this folder ({', '.join(SUFFIXES)})")
            left_out += scan.others
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.is_file():
            found.append((path, Path(path.name)))
        elif matches := sorted(Path(match) for match in glob.glob(text, recursive=True)):
            images = [p for p in matches if p.suffix.lower() in SUFFIXES]
            if not images:
                raise CommandError(f"{text}: none of the {len(matches)} files found is an image")
            found += [(p, Path(p.name)) for p in images]
        else:
            raise CommandError(f"{text}: no such file or folder")
    found = list(dict.fromkeys(found))
    if _names_a_file(out):
        if len(found) > 1:
            raise CommandError(f"{len(found)} images cannot all go to {out}; give -o a folder")
        return [Job(found[0][0], out)], left_out
    jobs = [Job(source, (out / place).with_suffix(".png")) for source, place in found]
    by_target: dict[Path, Path] = {}
    for job in jobs:
        if other := by_target.get(job.target):
            raise CommandError(f"{other} and {job.source} would both become {job.target}; restore them one by one")
        by_target[job.target] = job.source
    return jobs, left_out


def _names_a_file(out: Path) -> bool:
    from ipt_fast.io.images import SUFFIXES

    if out.is_dir() or not out.suffix:
        return False
    if out.suffix.lower() not in SUFFIXES:
        raise CommandError(f"-o {out}: not a kind of image that can be written; take .png, or a folder")
    return True


def _refuse_to_overwrite(jobs: list[Job], args: argparse.Namespace) -> None:
    for job in jobs:
        targets = [job.target, _compare_path(job.target)] if args.compare else [job.target]
        for target in targets:
            if target.exists() and target.samefile(job.source):
                raise CommandError(f"{target} is the input itself; choose another -o")
            if target.exists() and not args.force:
                raise CommandError(f"{target} is already there; --force overwrites")
    if args.out.exists() and not args.out.is_dir() and not _names_a_file(args.out):
        raise CommandError(f"-o {args.out} is a file; give a folder")


def _compare_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.compare.png")


def _restore_one(job: Job, network, task: str, args: argparse.Namespace) -> str:
    """Restore and write one image; returns the line that says so."""
    from ipt_fast.inference import restore
    from ipt_fast.io.images import read_image, write_image

    start = time.perf_counter()
    image = read_image(job.source)
    notes = list(image.notes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        out = restore(
            network,
            image.pil(),
            task,
            args.overlap,
            args.stitch,
            args.batch_size,
            self_ensemble=args.self_ensemble,
        )
    notes += [str(w.message).removeprefix("restore: ") for w in caught if "out of memory" in str(w.message)]
    job.target.parent.mkdir(parents=True, exist_ok=True)
    notes += write_image(out, job.target, force=args.force, icc_profile=image.icc_profile)
    if args.compare:
        compared = comparison(image.pixels, out, args.task)
        write_image(compared, _compare_path(job.target), force=args.force, icc_profile=image.icc_profile)
    height, width = image.pixels.shape[:2]
    line = (
        f"{job.source} {width}x{height} -> {job.target} {out.width}x{out.height}, {time.perf_counter() - start:.1f} s"
    )
    return line + (f" ({'; '.join(notes)})" if notes else "")


def comparison(pixels: np.ndarray, out: Image.Image, task: str) -> Image.Image:
    """Draw input | output in one picture; for super-resolution the input is enlarged bicubically."""
    from PIL import ImageDraw, ImageFont

    from ipt_fast.degradations.bicubic import bicubic_up
    from ipt_fast.io.images import array_to_tensor, to_uint8

    scale = out.width // pixels.shape[1]
    before = to_uint8(bicubic_up(array_to_tensor(pixels), scale)) if scale > 1 else pixels
    gap, caption = 8, 26
    picture = Image.new("RGB", (2 * out.width + 3 * gap, out.height + caption + gap), (255, 255, 255))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    shown = Image.new("RGB", out.size, (255, 255, 255))
    shown.paste(out, mask=out.getchannel("A") if out.mode == "RGBA" else None)
    left = gap
    for name, side in ((f"input, bicubic x{scale}" if scale > 1 else "input", Image.fromarray(before)), (task, shown)):
        draw.text((left, 4), name, (30, 30, 30), font)
        picture.paste(side, (left, caption))
        left += out.width + gap
    return picture


def _one_line(error: BaseException, source: Path) -> str:
    text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return text if str(source) in text else f"{source}: {text}"
