"""``ipt-fast demo``, behind ``make pretrain``: the whole way in minutes, on photos that are already on the machine.

Packaged photos -> index -> pre-training of the tiny preset on all six tasks -> scores and sample grids on photos that
were never trained on.
"""

import argparse
import json
import os
from pathlib import Path

from rich.console import Console

from ipt_fast.cli import CommandError

EXAMPLE = """example:
  ipt-fast demo --out runs/tiny
  ipt-fast demo --out runs/longer --set steps=4000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ipt-fast demo``."""
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of the run (default runs/tiny)")
    parser.add_argument("--preset", default="tiny", help="preset to train (default tiny)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe, as in train.py"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or resume an unfinished run; then score and draw."""
    from ipt_fast.data.packaged_photos import copy_training_photos, held_out_photos
    from ipt_fast.engine import run as engine
    from ipt_fast.evaluation.held_out import mean_scores, score_held_out, score_table
    from ipt_fast.evaluation.sample_grid import write_sample_grids
    from ipt_fast.inference import load_checkpoint

    try:
        photos = held_out_photos()
        data = copy_training_photos(args.out / "photos")
    except FileNotFoundError as error:
        raise CommandError(str(error)) from error
    options = [f"--set={change}" for change in args.set]
    code = engine.main(
        ["--data", str(data), "--preset", args.preset, "--out", str(args.out), "--resume", "auto", *options]
    )
    if code:
        return code

    console = Console(width=None if os.isatty(1) else 100, highlight=False)
    model = load_checkpoint(args.out / "checkpoint.pt").eval()
    with console.status("restoring photos that were never trained on"):
        results = score_held_out(model, photos, model.config.tasks)
    grids = write_sample_grids(results, args.out / "samples")
    scores = {
        task: {"psnr_y_input": round(before, 4), "psnr_y_model": round(after, 4)}
        for task, (before, after) in mean_scores(results).items()
    }
    (args.out / "held_out.json").write_text(json.dumps(scores, indent=2) + "\n")
    console.print(score_table(results))
    console.print(f"{args.out}: checkpoint.pt, config.json, log.jsonl, held_out.json, TensorBoard log")
    console.print(f"{args.out / 'samples'}: {', '.join(path.name for path in grids)}")
    return 0
