"""``ipt-fast restore``: photos in, restored photos out."""

import argparse
import glob
import os
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ipt_fast.cli import CommandError, check_output
from ipt_fast.cli._network import add_network_arguments, pick_task, prepare, window_options
from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.inference import restore
from ipt_fast.inference.prepare import PreparedIPT
from ipt_fast.io.images import SUFFIXES, array_to_tensor, read_image, silence_pillow_warnings, to_uint8, write_image
from ipt_fast.io.progress import message_console, progress_bar
from ipt_fast.io.scan import find_images

EXAMPLE = """examples:
  ipt-fast restore photo.jpg -o photo_x2.png --task sr2 --checkpoint IPT_pretrain.pt
  ipt-fast restore noisy/ 'more/*.png' -o clean/ --task denoise30 --checkpoint runs/tiny/checkpoint.pt --compare
exit codes: 0 all restored, 1 some images failed (each is named), 2 wrong usage or input"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast restore``."""
    parser.add_argument("images", nargs="+", metavar="IN", help="image files, folders (nested too) or globs")
    parser.add_argument(
        "-o", "--out", required=True, metavar="OUT",
        help="a file for one image, otherwise a folder (as one with / at the end is); PNG unless OUT says otherwise",
    )  # fmt: skip
    parser.add_argument("--task", required=True, help="sr2, sr3, sr4, derain, denoise<sigma>, deblur")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="released, own or safetensors")
    parser.add_argument("--compare", action="store_true", help="also write NAME.compare.png: input | output")
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    add_network_arguments(parser, precision="auto")


def run(args: argparse.Namespace) -> int:
    """Restore every image; images that cannot be read are named and left out."""
    silence_pillow_warnings()
    console = message_console()
    jobs, left_out = plan(args.images, args.out)
    for source, target in jobs:
        for written in (target, _compare_path(target)) if args.compare else (target,):
            check_output(written, args.force, source)
    task = pick_task(args.task)
    network, name = prepare(args.checkpoint, task, args)
    where = f"{next(network.parameters()).device.type}, {str(network.dtype).removeprefix('torch.')}"
    said = f"{len(jobs)} image{'s' * (len(jobs) != 1)}, {task.name}, {where}, {args.stitch}"
    if name != task.name:
        said += f"; the network was not trained for {task.name}, its nearest task is {name}"
    console.print(said)
    if left_out:
        console.print(f"left out: {left_out} files that are no images by their names")
    failed = 0
    with progress_bar("", len(jobs), console) as advance:
        for source, target in jobs:
            advance(0, source.name)
            try:
                console.print(_restore_one(source, target, network, name, args))
            except (OSError, RuntimeError) as error:
                failed += 1
                text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                console.print(f"failed: {text if str(source) in text else f'{source}: {text}'}")
            advance()
    if failed:
        console.print(f"{failed} of {len(jobs)} images failed")
    return 1 if failed else 0


def plan(inputs: list[str], target: str) -> tuple[list[tuple[Path, Path]], int]:
    """Return each image with the file that it becomes, and count the files of folders that are no images.

    Files of a folder keep their place below it; OUT itself is not entered. A single file may be given the name of its
    output. Of images that differ in the kind of file alone, such as a.jpg and a.png, each keeps the kind in its name.

    Raises:
        CommandError: nothing found, a name that is no image, two images with one output, or one output for many.
    """
    out = Path(target)
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
    if _names_a_file(target):
        if len(found) > 1:
            raise CommandError(f"{len(found)} images cannot all go to {out}; give -o a folder")
        return [(found[0][0], out)], left_out
    alike = Counter(place.with_suffix("") for _, place in found)
    sources: dict[Path, Path] = {}
    for source, place in found:
        kind = f"_{place.suffix[1:]}" if alike[place.with_suffix("")] > 1 else ""
        written = out / place.with_name(f"{place.stem}{kind}.png")
        if other := sources.get(written):
            raise CommandError(f"{other} and {source} would both become {written}; restore them one by one")
        sources[written] = source
    return [(source, written) for written, source in sources.items()], left_out


def _names_a_file(target: str) -> bool:
    out = Path(target)
    if target.endswith(os.sep) or out.is_dir() or not out.suffix:
        if out.is_file():
            raise CommandError(f"-o {out} is a file; give a folder")
        return False
    if out.suffix.lower() not in SUFFIXES:
        raise CommandError(
            f"-o {out}: not a kind of image that can be written; take .png, or for a folder end it with a /"
        )
    return True


def _compare_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.compare.png")


def _restore_one(source: Path, target: Path, network: PreparedIPT, task: str, args: argparse.Namespace) -> str:
    """Restore and write one image; returns the line that says so."""
    start = time.perf_counter()
    image = read_image(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        out = restore(network, image.pil(), task, **window_options(args))
    said = [str(w.message).removeprefix("restore: ") for w in caught if "out of memory" in str(w.message)]
    target.parent.mkdir(parents=True, exist_ok=True)
    notes = *image.notes, *said, *write_image(out, target, force=args.force, icc_profile=image.icc_profile)
    if args.compare:
        compared = comparison(image.pixels, out, args.task)
        write_image(compared, _compare_path(target), force=args.force, icc_profile=image.icc_profile)
    height, width = image.pixels.shape[:2]
    seconds = time.perf_counter() - start
    line = f"{source} {width}x{height} -> {target} {out.width}x{out.height}, {seconds:.1f} s"
    return line + (f" ({'; '.join(notes)})" if notes else "")


def comparison(pixels: np.ndarray, out: Image.Image, task: str) -> Image.Image:
    """Draw input | output in one picture; for super-resolution the input is enlarged bicubically."""
    scale = out.width // pixels.shape[1]
    before = to_uint8(bicubic_up(array_to_tensor(pixels), scale)) if scale > 1 else pixels
    gap, caption = 8, 26
    picture = Image.new("RGB", (2 * out.width + 3 * gap, out.height + caption + gap), (255, 255, 255))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    shown = Image.new("RGB", out.size, (255, 255, 255))
    shown.paste(out, mask=out.getchannel("A") if out.mode == "RGBA" else None)
    first = f"input, bicubic x{scale}" if scale > 1 else "input"
    for left, name, side in ((gap, first, Image.fromarray(before)), (out.width + 2 * gap, task, shown)):
        draw.text((left, 4), name, (30, 30, 30), font)
        picture.paste(side, (left, caption))
    return picture
