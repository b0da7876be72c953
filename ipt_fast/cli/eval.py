"""``ipt-fast eval``: PSNR and SSIM on test sets, per image and mean, beside the paper's tables."""

import argparse
import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ipt_fast.cli import CommandError, _network, check_folder, user_errors
from ipt_fast.cli._network import NoSuchTaskError
from ipt_fast.cli.tables import print_table
from ipt_fast.evaluation.paper import ALIASES, CELLS, TITLES, find_paper_sets, table_rows
from ipt_fast.evaluation.score import INPUT, Method, Score, mean_scores, score_set
from ipt_fast.evaluation.test_sets import TestSetError, find_set
from ipt_fast.io.atomic import atomic_write
from ipt_fast.io.images import silence_pillow_warnings
from ipt_fast.io.progress import message_console, progress_bar

EXAMPLE = """examples:
  ipt-fast eval --task sr4 --data Set5 --checkpoint IPT_pretrain.pt --csv scores.csv --json scores.json
  ipt-fast eval --task denoise70 --data CBSD68 --checkpoint runs/tiny/checkpoint.pt --limit 10 --brief
  ipt-fast eval --paper --data testsets --checkpoint IPT_pretrain.pt
without --checkpoint the input alone is scored (for super-resolution: enlarged bicubically)
folders: HR + LR_bicubic/X2 (EDSR, IPT, SwinIR), GTmod12 + LRbicx2, GT + LQ, rain + norain, input + target, clean images
exit codes: 0 scored, 2 wrong usage or data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast eval``."""
    add = parser.add_argument
    add("--task", help="sr2, sr3, sr4, derain, denoise<sigma>, deblur")
    add("--data", nargs="+", type=Path, required=True, metavar="DIR", help="test sets")
    add("--checkpoint", nargs="+", type=Path, default=[], metavar="FILE", help="one or more, compared")
    add("--paper", action="store_true", help="the paper's Tables 1 to 4 beside ours, sets found in --data")
    add("--seed", type=int, default=0, help="of the noise (default 0)")
    add("--limit", type=int, metavar="N", help="only the first N images of each set")
    add("--brief", action="store_true", help="print the means alone")
    add("--csv", type=Path, metavar="FILE", help="write every score")
    add("--json", type=Path, metavar="FILE", help="write every score and the means")
    _network.add_network_arguments(parser, precision="fp32")


def run(args: argparse.Namespace) -> int:
    """Score, print, write."""
    if args.paper == (args.task is not None):
        raise CommandError("give either --task or --paper")
    if args.limit is not None and args.limit < 1:
        raise CommandError(f"--limit must be at least 1, got {args.limit}")
    labels = _labels(args.checkpoint)
    for path in (args.csv, args.json):
        if path is not None:
            check_folder(path)
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
) -> list[Score]:
    """Scores of every (task, folder, name of the set); networks stay loaded as long as the task is the same.

    ``leave_out``: checkpoints that have no such task are left out instead of being an error.
    """
    silence_pillow_warnings()
    _network.pick_device(args.device)  # refused also where no network is to run
    console = message_console()
    scores: list[Score] = []
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
                    if not leave_out:
                        raise
                    continue
                shown = label if serving == task.name else f"{label} as {serving}"
                methods[shown] = Method(network, serving, _network.window_options(args))
            loaded_for = name
        count = min(len(images.pairs), args.limit or len(images.pairs))
        console.print(f"{images.name}, {task.name}: {count} images ({images.layout})")
        bar = progress_bar(images.name, count * (1 + len(methods)), console)
        with user_errors(OSError, TestSetError), bar as advance:
            for score in score_set(images, task, methods, args.seed, args.limit):
                scores.append(score)
                advance()
    return scores


def _print_scores(scores: list[Score], brief: bool) -> None:
    columns = ["image", "method", "PSNR-Y", "PSNR-RGB", "SSIM-Y", "seconds"]
    for name, task in dict.fromkeys((s.image_set, s.task) for s in scores):
        of_set = [s for s in scores if (s.image_set, s.task) == (name, task)]
        shown = ([] if brief else of_set) + mean_scores(of_set)
        rows = []
        for i, s in enumerate(shown):
            # An image's name once, above its methods.
            image = "" if i and shown[i - 1].image == s.image else s.image
            seconds = f"{s.seconds:.2f}" if s.seconds else ""
            ssim = "" if math.isnan(s.ssim_y) else f"{s.ssim_y:.4f}"
            rows.append([image, s.method, f"{s.psnr_y:.2f}", f"{s.psnr_rgb:.2f}", ssim, seconds])
        print_table(f"{name}, {task}", columns, rows, numeric=columns[2:])


def _paper(args: argparse.Namespace, labels: dict[str, Path]) -> list[Score]:
    """Score what is there, and print the paper's tables with our columns beside."""
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
    if missing := [name for name in ALIASES if name not in found]:
        print(f"not found: {', '.join(missing)}")
    return scores


def _write_files(args: argparse.Namespace, scores: list[Score]) -> None:
    """CSV: a line per image and method. JSON: the same with the means and what was asked for; null for nan and inf."""
    with user_errors(OSError):
        if args.csv is not None:
            with atomic_write(args.csv, "w") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Score)])
                writer.writeheader()
                writer.writerows(map(asdict, scores))
        if args.json is not None:
            content = {
                "settings": {key: value for key, value in vars(args).items() if key not in ("csv", "json")},
                "means": list(map(asdict, mean_scores(scores))),
                "scores": list(map(asdict, scores)),
            }
            with atomic_write(args.json, "w") as file:
                file.write(json.dumps(_plain(content), indent=1, allow_nan=False, default=str) + "\n")


def _plain(value: Any) -> Any:
    """Return the same with null for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
