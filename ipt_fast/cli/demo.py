"""``ipt-fast demo``, behind ``make pretrain``: the whole way in minutes, on photos that are already on the machine.

Packaged photos -> index -> pre-training of the tiny preset on all six tasks -> scores and sample grids on photos that
were never trained on.
"""

import argparse
import json
from pathlib import Path

from ipt_fast.cli import user_errors

EXAMPLE = """example:
  ipt-fast demo --out runs/tiny
  ipt-fast demo --out runs/longer --set steps=4000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast demo``."""
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of the run (default runs/tiny)")
    parser.add_argument("--preset", default="tiny", help="preset to train (default tiny)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change the recipe, as in train.py"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or resume an unfinished run; then score and draw."""
    from ipt_fast.cli.tables import print_table
    from ipt_fast.data.packaged_photos import copy_training_photos, held_out_photos
    from ipt_fast.engine import run as engine
    from ipt_fast.engine.config import recipe
    from ipt_fast.evaluation.held_out import COLUMNS, mean_psnr, score_held_out, score_rows
    from ipt_fast.evaluation.sample_grid import write_sample_grids
    from ipt_fast.inference import load_checkpoint
    from ipt_fast.io.atomic import atomic_write

    with user_errors(OSError):
        photos = held_out_photos()
        data = copy_training_photos(args.out / "photos")
    options = ["--data", str(data), "--preset", args.preset, "--out", str(args.out), "--resume", "auto"]
    if code := engine.main([*options, *(f"--set={change}" for change in args.set)]):
        return code

    model = load_checkpoint(args.out / "checkpoint.pt").eval()
    print("restoring photos that were never trained on", flush=True)
    results = score_held_out(model, photos, model.config.tasks)
    means = mean_psnr(results)
    scores = {
        task: {"psnr_y_input": round(before, 4), "psnr_y_model": round(after, 4)}
        for task, (before, after) in means.items()
    }
    with user_errors(OSError):  # a full disk
        grids = write_sample_grids(results, args.out / "samples")
        with atomic_write(args.out / "held_out.json", "w") as file:
            file.write(json.dumps(scores, indent=2) + "\n")
    title = f"PSNR-Y in dB on photos never trained on: {', '.join(photos)}"
    print_table(title, COLUMNS, score_rows(results), COLUMNS[1:])
    if below := [task for task, (before, after) in means.items() if after < before]:
        steps = json.loads((args.out / "config.json").read_text(encoding="utf-8"))["run"]["total_steps"]
        usual = recipe(args.preset).steps
        said = f"; the recipe of {args.preset} has {usual:,}" if usual and usual > steps else ""
        print(f"{', '.join(below)}: worse than the input, after {steps:,} steps{said}. Longer runs: --set steps=N")
    print(f"{args.out}: checkpoint.pt, config.json, log.jsonl, held_out.json, TensorBoard log")
    print(f"{args.out / 'samples'}: {', '.join(path.name for path in grids)}")
    return 0
