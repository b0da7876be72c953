"""``ipt-fast eval``: PSNR and SSIM on test sets, per image and mean, beside the paper's tables."""

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ipt_fast.cli import CommandError

if TYPE_CHECKING:
    from ipt_fast.evaluation.score import Score

EXAMPLE = """examples:
  ipt-fast eval --task sr4 --data Set5 --checkpoint IPT_pretrain.pt --csv scores.csv --json scores.json
  ipt-fast eval --task denoise70 --data CBSD68 --checkpoint runs/tiny/checkpoint.pt --limit 10 --brief
  ipt-fast eval --paper --data testsets --checkpoint IPT_pretrain.pt
without --checkpoint the input alone is scored (for super-resolution: enlarged bicubically)
folders: HR + LR_bicubic/X2 (EDSR, IPT, SwinIR), GTmod12 + LRbicx2, GT + LQ, rain + norain, input + target, clean images
exit codes: 0 scored, 2 wrong usage or data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ipt-fast eval``."""
    from ipt_fast.cli._network import add_network_arguments

    parser.add_argument("--task", help="sr2, sr3, sr4, derain, denoise<sigma>, deblur")
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="DIR", help="test sets")
    parser.add_argument("--checkpoint", nargs="+", type=Path, default=[], metavar="FILE", help="one or more, compared")
    parser.add_argument(
        "--paper", action="store_true", help="the paper's Tables 1 to 4 beside ours, sets found in --data"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each set")
    parser.add_argument("--brief", action="store_true", help="print the means alone")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every score")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every score and the means")
    add_network_arguments(parser, precision="fp32")


def run(args: argparse.Namespace) -> int:
    """Score, print, write."""
    if args.paper == (args.task is not None):
        raise CommandError("give either --task or --paper")
    if args.limit is not None and args.limit < 1:
        raise CommandError(f"--limit must be at least 1, got {args.limit}")
    labels = _labels(args.checkpoint)
    for path in (args.csv, args.json):
        if path is not None and not path.parent.is_dir():
            raise CommandError(f"{path}: the folder {path.parent} is not there")
    if args.paper:
        scores = _paper(args, labels)
    else:
        scores = score_sets(args, labels, [(args.task, path, None) for path in args.data])
        _print_scores(scores, args.brief)
    _write_files(args, scores)
    return 0


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
    leave_out: bool = False,
) -> "list[Score]":
    """Scores of every (task, folder, name of the set); networks stay loaded as long as the task is the same.

    ``leave_out``: checkpoints that have no such task are left out instead of being an error.
    """
    from ipt_fast.cli._network import (
        NoSuchTaskError,
        check_windows,
        load_for_task,
        pick_device,
        pick_precision,
        pick_task,
    )
    from ipt_fast.evaluation.score import Method, score_set
    from ipt_fast.evaluation.test_sets import ImageSet, TestSetError, find_set
    from ipt_fast.inference import prepare_for_inference
    from ipt_fast.io.images import silence_pillow_warnings

    silence_pillow_warnings()
    device = pick_device(args.device)
    dtype = pick_precision(args.precision, device)
    options = {
        "overlap": args.overlap,
        "stitch": args.stitch,
        "batch_size": args.batch_size,
        "self_ensemble": args.self_ensemble,
    }
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    scores: list[Score] = []
    methods: dict[str, Method] = {}
    loaded_for = None
    for name, folder, set_name in work:
        task = pick_task(name)
        try:
            images = find_set(folder, task)
        except (OSError, TestSetError) as error:
            raise CommandError(str(error)) from error
        if set_name is not None:
            images = ImageSet(set_name, images.pairs, images.layout)
        if loaded_for != name:
            methods = {}
            for label, path in labels.items():
                try:
                    model, serving = load_for_task(path, task, device)
                except NoSuchTaskError:
                    if leave_out:
                        continue
                    raise
                check_windows(args, model.config.patch_size)
                shown = label if serving == task.name else f"{label} as {serving}"
                methods[shown] = Method(prepare_for_inference(model, serving, dtype), serving, options)
            loaded_for = name
        count = min(len(images.pairs), args.limit or len(images.pairs))
        console.print(f"{images.name}, {task.name}: {count} images ({images.layout})", markup=False)
        try:
            with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
                bar = progress.add_task(images.name, total=count * (1 + len(methods)))
                for score in score_set(images, task, methods, args.seed, args.limit):
                    scores.append(score)
                    progress.advance(bar)
        except (OSError, TestSetError) as error:
            raise CommandError(str(error)) from error
    return scores


def _print_scores(scores: "list[Score]", brief: bool) -> None:
    from ipt_fast.cli.tables import print_table
    from ipt_fast.evaluation.score import mean_scores

    columns = ["image", "method", "PSNR-Y", "PSNR-RGB", "SSIM-Y", "seconds"]
    for name, task in dict.fromkeys((s.image_set, s.task) for s in scores):
        of_set = [s for s in scores if (s.image_set, s.task) == (name, task)]
        shown = ([] if brief else of_set) + mean_scores(of_set)
        rows = []
        for i, s in enumerate(shown):
            # An image's name once, above its methods.
            image = "" if i and shown[i - 1].image == s.image else s.image
            seconds = f"{s.seconds:.2f}" if s.seconds else ""
            rows.append([image, s.method, f"{s.psnr_y:.2f}", f"{s.psnr_rgb:.2f}", _ssim(s.ssim_y), seconds])
        print_table(f"{name}, {task}", columns, rows, numeric=columns[2:])


def _ssim(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _paper(args: argparse.Namespace, labels: dict[str, Path]) -> "list[Score]":
    """Score what is there, and print the paper's tables with our columns beside."""
    from ipt_fast.cli.tables import print_table
    from ipt_fast.evaluation.paper import ALIASES, CELLS, TITLES, find_paper_sets, table_rows
    from ipt_fast.evaluation.score import INPUT, mean_scores

    for path in args.data:
        if not path.is_dir():
            raise CommandError(f"{path}: no such folder")
    found = find_paper_sets(args.data)
    if not found:
        raise CommandError(f"none of the paper's sets ({', '.join(ALIASES)}) is in {', '.join(map(str, args.data))}")
    work = [(cell.task, found[cell.image_set], cell.image_set) for cell in CELLS if cell.image_set in found]
    scores = score_sets(args, labels, work, leave_out=True)
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
    missing = [name for name in ALIASES if name not in found]
    if missing:
        print(f"not found: {', '.join(missing)}")
    return scores


def _write_files(args: argparse.Namespace, scores: "list[Score]") -> None:
    """CSV: a line per image and method. JSON: the same with the means and what was asked for; null for nan and inf."""
    from ipt_fast.evaluation.score import Score, mean_scores
    from ipt_fast.io.atomic import atomic_write

    try:
        if args.csv is not None:
            with atomic_write(args.csv, "w") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Score)])
                writer.writeheader()
                writer.writerows(asdict(score) for score in scores)
        if args.json is not None:
            content = {
                "settings": {key: _plain(value) for key, value in vars(args).items() if key not in ("csv", "json")},
                "means": [_plain(asdict(score)) for score in mean_scores(scores)],
                "scores": [_plain(asdict(score)) for score in scores],
            }
            with atomic_write(args.json, "w") as file:
                file.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise CommandError(str(error)) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
