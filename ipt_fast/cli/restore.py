"""``ipt-fast restore``: photos in, restored photos out."""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ipt_fast.checkpoint import PRETRAINED
from ipt_fast.cli import CommandError, user_errors
from ipt_fast.cli._network import add_network_arguments, pick_task, prepare, window_options
from ipt_fast.cli._restore_plan import Job, Naming, make_plan
from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.inference import restore
from ipt_fast.inference.prepare import PreparedIPT
from ipt_fast.inference.restoration import enlarge_alpha
from ipt_fast.io.images import array_to_pil, array_to_tensor, pillow_set, read_image, to_uint8, with_alpha
from ipt_fast.io.progress import message_console, progress_bar
from ipt_fast.io.write import WRITABLE, write_image

EXAMPLE = """examples:
  ipt-fast restore photo.jpg -o clean.png --task denoise30
  ipt-fast restore photo.jpg -o photo_x2.png --task sr2 --checkpoint IPT_pretrain.pt
  ipt-fast restore noisy/ 'more/*.png' -o clean/ --task denoise30 --checkpoint runs/tiny/checkpoint.pt --compare
  ipt-fast restore photos/ -o photos/ --suffix _x2 --ext .jpg --quality 90 --task sr2 --checkpoint IPT_pretrain.pt
colour profile, EXIF data, alpha and (in PNG and TIFF) 16 bits a channel go with an image; what cannot is said
exit codes: 0 all restored, 1 some images failed (each is named), 2 wrong usage or input, 130 and 143 stopped"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast restore``."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IN", help="image files, folders (nested too) or globs")
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
    add("--suffix", default="", metavar="TEXT", help="outputs in a folder are NAME<TEXT>.png")
    add("--ext", default=".png", metavar="EXT", help="kind of the outputs in a folder: .png (default), .jpg, ..., same")
    add("--quality", type=int, metavar="N", help="1 to 100, of JPEG (default 95), AVIF (90) and WebP (without loss)")
    add("--force", action="store_true", help="overwrite files that are there")
    add("--skip-existing", action="store_true", help="leave out images whose output is there")
    group = add_network_arguments(parser, precision="auto")
    group.add_argument("--tile", type=int, metavar="PX", help="side of a window: the network's own, it has no other")


def run(args: argparse.Namespace) -> int:
    """Restore every image; images that cannot be read are named and left out."""
    naming = _naming(args)
    console = message_console()
    options = {"force": args.force, "skip_existing": args.skip_existing, "quality": args.quality}
    with user_errors(OSError):
        plan = make_plan(args.images, args.out, naming, **options)
    failed = [f"{folder}: {reason}" for folder, reason in plan.unreadable]
    count = f"{len(plan.jobs)} image{'s' * (len(plan.jobs) != 1)}"
    for line in [*plan.notes, *(f"failed: {line}" for line in failed)]:
        console.print(line)
    if plan.jobs:
        network, name, task = prepare(args.checkpoint, args.task and pick_task(args.task), args)
        _check_tile(args.tile, network)
        where = f"{next(network.parameters()).device.type}, {str(network.dtype).removeprefix('torch.')}"
        said = f"{count}, {task.name}, {where}, {args.stitch}"
        if args.checkpoint == Path(PRETRAINED):
            said += ", with the network that comes with ipt-fast (--checkpoint takes another)"
        if name != task.name:
            said += f"; the network was not trained for {task.name}, its nearest task is {name}"
        console.print(said)
    done = 0
    try:
        with pillow_set(args.max_pixels), progress_bar("", len(plan.jobs), console) as advance:
            for job in plan.jobs:
                advance(0, job.source.name)
                try:
                    console.print(_restore_one(job, network, name, args, advance))
                    done += 1
                except (OSError, RuntimeError, MemoryError) as error:
                    text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                    failed.append(text if str(job.source) in text else f"{job.source}: {text}")
                    console.print(f"failed: {failed[-1]}")
                advance(to_whole=True)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{done} of {count} restored") from None
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
    if args.force and args.skip_existing:
        raise CommandError("--force overwrites what --skip-existing leaves alone; give one of them")
    return Naming(args.suffix, ext, args.compare)


def _check_tile(tile: int | None, network: PreparedIPT) -> None:
    size = network.config.patch_size
    if tile not in (None, size):
        raise CommandError(
            f"--tile {tile}: this network takes windows of {size}x{size} pixels and no others, as its position "
            f"embedding belongs to them; give --tile {size} or none, for less memory a --batch-size"
        )


def _restore_one(
    job: Job, network: PreparedIPT, task: str, args: argparse.Namespace, advance: Callable[[float], None]
) -> str:
    """Restore and write one image; returns the line that says so."""
    start = time.perf_counter()
    image = read_image(job.source, deep=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        out = restore(network, image.pixels, task, progress=advance, **window_options(args))
    said = [str(w.message) for w in caught if "out of memory" in str(w.message)]
    (height, width), (high, wide) = image.pixels.shape[:2], out.shape[:2]
    out = with_alpha(out, image.alpha if image.alpha is None else enlarge_alpha(image.alpha, (wide, high)))
    job.target.parent.mkdir(parents=True, exist_ok=True)
    saved = write_image(out, job.target, force=args.force, metadata=image.metadata, quality=args.quality)
    if job.compare is not None:
        compared = comparison(image.pil(), array_to_pil(out), task)
        write_image(compared, job.compare, force=args.force, metadata=image.metadata)
    seconds = time.perf_counter() - start
    notes = *image.notes, *said, *saved
    line = f"{job.source} {width}x{height} -> {job.target} {wide}x{high}, {seconds:.1f} s"
    return line + (f" ({'; '.join(notes)})" if notes else "")


def comparison(before: Image.Image, out: Image.Image, task: str) -> Image.Image:
    """Draw input | output in one picture; for super-resolution the input is enlarged bicubically."""
    scale = out.width // before.width
    left, right = (_on_white(image) for image in (before, out))
    if scale > 1:
        left = Image.fromarray(to_uint8(bicubic_up(array_to_tensor(np.array(left)), scale)))
    captions, font = (f"input, bicubic x{scale}" if scale > 1 else "input", task), ImageFont.load_default(15)
    gap, top = 8, 26
    step = max(out.width, *(round(font.getlength(text)) for text in captions)) + gap
    picture = Image.new("RGB", (gap + 2 * step, out.height + top + gap), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for x, caption, side in ((gap, captions[0], left), (gap + step, captions[1], right)):
        draw.text((x, 4), caption, (30, 30, 30), font)
        picture.paste(side, (x, top))
    return picture


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
