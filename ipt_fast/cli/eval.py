"""``ipt-fast eval``: PSNR and SSIM on test sets, per image and mean, beside the paper's tables."""

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ipt_fast.checkpoint import CheckpointError
from ipt_fast.cli import CommandError, _network, check_folder, check_output, user_errors
from ipt_fast.cli._network import NoSuchTaskError
from ipt_fast.cli.tables import print_table
from ipt_fast.evaluation.gallery import Gallery
from ipt_fast.evaluation.paper import ALIASES, CELLS, TITLES, find_paper_sets, table_rows
from ipt_fast.evaluation.perceptual import Distance, load_dists, load_lpips
from ipt_fast.evaluation.score import INPUT, Method, Score, mean_scores, score_pair
from ipt_fast.evaluation.test_sets import ImageSet, TestSetError, find_set
from ipt_fast.io.atomic import atomic_write
from ipt_fast.io.images import pillow_set, to_uint8
from ipt_fast.io.progress import message_console, progress_bar
from ipt_fast.io.write import write_image

EXAMPLE = """examples:
  ipt-fast eval --task sr4 --data Set5 --checkpoint IPT_pretrain.pt --csv scores.csv --json scores.json
  ipt-fast eval --task denoise70 --data CBSD68 --checkpoint runs/tiny/checkpoint.pt --limit 10 --brief
  ipt-fast eval --paper --data testsets --checkpoint IPT_pretrain.pt
without --checkpoint the input alone is scored (for super-resolution: enlarged bicubically)
folders: HR + LR_bicubic/X2 (EDSR, IPT, SwinIR), GTmod12 + LRbicx2, GT + LQ, rain + norain, input + target, clean images
PSNR means leave images out that equal their ground truth, and say how many; JSON has "inf" and "nan" in words
exit codes: 0 scored, 1 some images could not be read (each is named), 2 wrong usage or data, 130 and 143 stopped \
with the scores so far"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast eval``."""
    add = parser.add_argument
    add("--task", help="sr2, sr3, sr4, derain, denoise<sigma>, deblur")
    add("--data", nargs="+", type=Path, required=True, metavar="DIR", help="test sets")
    add("--checkpoint", nargs="+", type=Path, default=[], metavar="FILE", help="one or more, compared")
    add("--paper", action="store_true", help="the paper's Tables 1 to 4 beside ours, sets found in --data")
    add("--seed", type=int, default=0, help="of the noise (default 0)")
    add("--limit", type=int, metavar="N", help="only the first N images of each set")
    add("--lpips", type=Path, metavar="FILE", help="LPIPS too, on these weights of AlexNet or VGG-16 (extra: metrics)")
    add("--dists", type=Path, metavar="FILE", help="DISTS too, on these weights of VGG-16 (extra: metrics)")
    add = parser.add_argument_group("outputs").add_argument
    add("--brief", action="store_true", help="print the means alone")
    add("--csv", type=Path, metavar="FILE", help="write every score")
    add("--json", type=Path, metavar="FILE", help="write every score and the means")
    add("--save", type=Path, metavar="DIR", help="write what the networks make: DIR/SET_TASK/CHECKPOINT/IMAGE.png")
    add("--html", type=Path, metavar="DIR", help="write a page with sliders between input, outputs and ground truth")
    add("--force", action="store_true", help="overwrite files that are there")
    _network.add_network_arguments(parser, precision="fp32")


def run(args: argparse.Namespace) -> int:
    """Score, print, write; where it is stopped, what there is until then."""
    if args.paper == (args.task is not None):
        raise CommandError("give either --task or --paper")
    if args.limit is not None and args.limit < 1:
        raise CommandError(f"--limit must be at least 1, got {args.limit}")
    if args.save is not None and not args.checkpoint:
        raise CommandError("--save writes what networks make; give --checkpoint")
    labels = _labels(args.checkpoint)
    for path in filter(None, (args.csv, args.json)):
        check_folder(path)
        check_output(path, args.force)
    if args.html is not None:
        _check_gallery(args.html, args.force)
    with user_errors(OSError, CheckpointError):
        loaders = {"lpips": load_lpips, "dists": load_dists}
        distances = {name: load(path) for name, load in loaders.items() if (path := getattr(args, name)) is not None}
    found = _find_paper_sets(args.data) if args.paper else {}
    work: list[tuple[str, Path, str | None]] = [(args.task, path, None) for path in args.data]
    if args.paper:
        work = [(cell.task, found[cell.image_set], cell.image_set) for cell in CELLS if cell.image_set in found]
    scores: list[Score] = []
    failed: list[str] = []
    gallery = None if args.html is None else Gallery(args.html)
    stopped = None
    try:
        with pillow_set(args.max_pixels):
            score_sets(args, labels, work, scores, failed, distances, gallery)
    except KeyboardInterrupt as stop:
        stopped = stop
    if args.paper:
        _print_paper(args, labels, scores, found)
    else:
        _print_scores(scores, args.brief)
    _print_identical(scores)
    _write_files(args, scores)
    if gallery is not None:
        with user_errors(OSError):
            print(f"page: {gallery.write()}")
    if stopped is not None:
        count = len({(s.image_set, s.task, s.image) for s in scores})
        raise type(stopped)(f"images scored until then: {count}") from None
    if failed:
        print(f"failed images, which the means leave out: {len(failed)}", *failed, sep="\n  ", file=sys.stderr)
    return 1 if failed else 0


def _check_gallery(folder: Path, force: bool) -> None:
    """Refuse a folder in which something is."""
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--html {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise CommandError(f"--html {folder}: there is something in this folder; give another, or --force to overwrite")


def _labels(checkpoints: list[Path]) -> dict[str, Path]:
    """Short names that differ: file names, with folders before them where those are equal."""
    for depth in range(1, 1 + max((len(p.resolve().parts) for p in checkpoints), default=1)):
        labels = {str(Path(*p.resolve().parts[-depth:])): p for p in checkpoints}
        if len(labels) == len(checkpoints):
            return labels
    raise CommandError("--checkpoint names a file twice")


def score_sets(
    args: argparse.Namespace,
    labels: dict[str, Path],
    work: Iterable[tuple[str, Path, str | None]],
    scores: list[Score],
    failed: list[str],
    distances: Mapping[str, Distance],
    gallery: Gallery | None,
) -> None:
    """Add the scores of every (task, folder, name of the set); networks stay loaded as long as the task is the same.

    Images that cannot be read are named in ``failed``. For the paper's tables, checkpoints that have no such task are
    left out; otherwise they are an error.
    """
    device = _network.pick_device(args.device)  # refused also where no network is to run
    distances = {name: distance.to(device) for name, distance in distances.items()}
    console = message_console()
    methods: dict[str, Method] = {}
    loaded_for = None
    for name, folder, set_name in work:
        task = _network.pick_task(name)
        with user_errors(OSError, TestSetError):
            images = find_set(folder, task)
        if set_name is not None:
            images = replace(images, name=set_name)
        if loaded_for != name:
            methods = {}
            for label, path in labels.items():
                try:
                    network, serving, _ = _network.prepare(path, task, args)
                except NoSuchTaskError:
                    if not args.paper:
                        raise
                    continue
                shown = label if serving == task.name else f"{label} as {serving}"
                methods[shown] = Method(network, serving, _network.window_options(args))
            loaded_for = name
        count = min(len(images.pairs), args.limit or len(images.pairs))
        files = {} if args.save is None else _output_files(args, images, task.name, methods, count)
        console.print(f"{images.name}, {task.name}: {count} images ({images.layout})")
        with user_errors(TestSetError), progress_bar(images.name, count, console) as advance:
            for number in range(count):
                try:
                    for score, output, gt in score_pair(images, number, task, methods, args.seed, distances):
                        scores.append(score)
                        if gallery is not None:
                            gallery.add(score, output, gt)
                        if target := files.get((number, score.method)):
                            target.parent.mkdir(parents=True, exist_ok=True)
                            write_image(to_uint8(output[0]), target, force=args.force)
                        advance(1 / (1 + len(methods)))
                except OSError as error:
                    failed.append(str(error))
                    console.print(f"failed: {error}")
                advance(done=number + 1)


def _output_files(
    args: argparse.Namespace, images: ImageSet, task: str, methods: Iterable[str], count: int
) -> dict[tuple[int, str], Path]:
    """Return (image, method) -> the file of what the network makes, none of which is there."""
    files = {}
    for number, pair in enumerate(images.pairs[:count]):
        for method in methods:
            folder = args.save / f"{images.name}_{task}" / method.replace("/", "_")
            files[number, method] = folder / f"{pair.name}.png"
            check_output(files[number, method], args.force)
    if len(set(files.values())) < len(files):
        raise CommandError(f"{images.name}: --save would write images of one name (a.jpg, a.png) over each other")
    return files


def _print_scores(scores: list[Score], brief: bool) -> None:
    more = {"lpips": "LPIPS", "dists": "DISTS"}
    more = {key: title for key, title in more.items() if any(getattr(s, key) is not None for s in scores)}
    columns = ["image", "method", "PSNR-Y", "PSNR-RGB", "SSIM-Y", *more.values(), "seconds"]
    for name, task in dict.fromkeys((s.image_set, s.task) for s in scores):
        of_set = [s for s in scores if (s.image_set, s.task) == (name, task)]
        shown = ([] if brief else of_set) + mean_scores(of_set)
        rows = []
        for i, s in enumerate(shown):
            # An image's name once, above its methods.
            image = "" if i and shown[i - 1].image == s.image else s.image
            seconds = f"{s.seconds:.2f}" if s.seconds else ""
            figures = ["" if math.isnan(value := getattr(s, key)) else f"{value:.4f}" for key in ("ssim_y", *more)]
            rows.append([image, s.method, f"{s.psnr_y:.2f}", f"{s.psnr_rgb:.2f}", *figures, seconds])
        print_table(f"{name}, {task}", columns, rows, numeric=columns[2:])


def _print_identical(scores: list[Score]) -> None:
    for mean in mean_scores(scores):
        if mean.identical:
            left = "so its PSNR is inf" if mean.identical == mean.images else "left out of its mean PSNR"
            where = f"{mean.image_set}, {mean.task}, {mean.method}"
            print(f"{where}: {mean.identical} of {mean.images} images equal their ground truth, {left}")


def _find_paper_sets(folders: list[Path]) -> dict[str, Path]:
    for path in folders:
        if not path.is_dir():
            raise CommandError(f"{path}: no such folder")
    found = find_paper_sets(folders)
    if not found:
        raise CommandError(f"none of the paper's sets ({', '.join(ALIASES)}) is in {', '.join(map(str, folders))}")
    return found


def _print_paper(
    args: argparse.Namespace, labels: dict[str, Path], scores: list[Score], found: dict[str, Path]
) -> None:
    """Print the paper's tables with our columns beside."""
    ours: dict[tuple[str, str], dict[str, float]] = {}
    for mean in mean_scores(scores):
        served = (label for label in labels if mean.method in (label, f"{label} as {mean.method.split()[-1]}"))
        label = "input (ours)" if mean.method == INPUT else next(served)
        ours.setdefault((mean.image_set, mean.task), {})[label] = mean.psnr_y
    for table, title in TITLES.items():
        columns, rows = table_rows(table, ours, ["input (ours)", *labels])
        print_table(title, columns, rows, numeric=columns[2:])
    if args.limit is not None:
        print(f"ours: the first {args.limit} images of each set alone, so no fair comparison")
    if missing := [name for name in ALIASES if name not in found]:
        print(f"not found: {', '.join(missing)}")


def _write_files(args: argparse.Namespace, scores: list[Score]) -> None:
    """CSV: a line per image and method. JSON: the same with the means and what was asked for."""
    with user_errors(OSError):
        if args.csv is not None:
            with atomic_write(args.csv, "w") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Score)])
                writer.writeheader()
                writer.writerows({key: _utf8(value) for key, value in asdict(score).items()} for score in scores)
        if args.json is not None:
            content = {
                "settings": {key: value for key, value in vars(args).items() if key not in ("csv", "json")},
                "means": list(map(asdict, mean_scores(scores))),
                "scores": list(map(asdict, scores)),
            }
            with atomic_write(args.json, "w") as file:
                file.write(json.dumps(_plain(content), indent=1, allow_nan=False, default=str) + "\n")


def _utf8(value: Any) -> Any:
    """Return the same with escapes for what of a file's name is not UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """Return the same with "inf" and "nan" for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
