"""What the paper claims, at a scale of minutes: the same short training with one thing changed, three seeds each.

    python -m bench.weights.ablations --data PHOTOS --sets FOLDER --steps 1200 --out runs/ablations
    python -m bench.weights.ablations --table --out runs/ablations

Table 5 (contrastive loss), Figure 6 (share of the photos), the task embedding, and one task against six. All have the
same steps, so that what costs more takes longer; a task alone has a sixth of them, as many as six tasks leave to each.
A seed decides start, crops, noise and the order of tasks. Seeds may run side by side, each on a core: ``--seeds 0`` in
one terminal, ``--seeds 1 2`` in another, in the same folder.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.weights.pilots import ROOT, SCORED, end_run, is_done, score, slug, start_run
from ipt_fast.checkpoint import load_training_state
from ipt_fast.cli.tables import markdown_table

PAGE = ROOT / "bench" / "results" / "ablations.md"
SEEDS = (0, 1, 2)
COMMON = {"lr": 5e-4, "schedule": "cosine", "precision": "bf16", "checkpoint_every": 200}
FULL = "as the paper"
ABLATIONS: dict[str, dict[str, object]] = {
    FULL: {},
    "no contrastive loss": {"lam": 0},
    "no task embedding": {"model.task_embed": "false"},
    **{f"{share} % of the photos": {"data_fraction": share / 100} for share in (80, 60, 40, 20)},
}
ALONE = "each task alone, a sixth of the steps"

Scores = Mapping[str, tuple[float, float]]  # task -> (dB of the input, dB of the network)


def run(name: str, changes: Mapping[str, object], seed: int, steps: int, data: Path, sets: Path, out: Path) -> None:
    """Train and score one network, unless that is done; what was killed goes on from its last checkpoint."""
    name = f"{name} seed {seed}"
    if is_done(out, name):
        return
    folder = out / slug(name)
    process, _ = start_run({**COMMON, **changes, "steps": steps}, data, folder, seed, resume=True)
    end_run(process, folder)
    if (done := load_training_state(folder / "checkpoint.pt")["step"]) < steps:
        raise RuntimeError(f"{name}: stopped after step {done} of {steps}; start again to go on")
    scores = score(folder / "checkpoint.pt", sets)
    (folder / "pilot.json").write_text(json.dumps({"name": name, "steps": steps, "scores": scores}, indent=1) + "\n")
    print(name, {task: round(after, 2) for task, (_, after) in scores.items()}, flush=True)


def read(name: str, out: Path) -> Scores:
    """Return the scores of a run that is done."""
    return json.loads((out / slug(name) / "pilot.json").read_text())["scores"]


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def row(name: str, found: Sequence[Scores]) -> list[str]:
    """Return a row of the table from the scores of all seeds."""
    gains = [statistics.mean(after - before for before, after in scores.values()) for scores in found]
    return [name, *(spread([scores[task][1] for scores in found]) for task in SCORED), spread(gains)]


def write_table(out: Path) -> None:
    """Write the page of what is done with every seed."""
    rows = []
    for name in ABLATIONS:
        if all(is_done(out, f"{name} seed {seed}") for seed in SEEDS):
            rows.append(row(name, [read(f"{name} seed {seed}", out) for seed in SEEDS]))
    alone = [[f"{task} alone seed {seed}" for task in SCORED] for seed in SEEDS]
    if all(is_done(out, name) for names in alone for name in names):
        rows.append(row(ALONE, [{k: v for name in names for k, v in read(name, out).items()} for names in alone]))
    steps = json.loads((out / slug(f"{FULL} seed 0") / "pilot.json").read_text())["steps"]
    columns = ["run", *SCORED, "mean gain"]
    text = PAGE_TEXT.format(steps=f"{steps:,}", table=markdown_table(columns, rows, columns[1:]))
    PAGE.write_text(text)
    print(text)


PAGE_TEXT = """# What the paper claims, at the scale of minutes

`python -m bench.weights.ablations`: {steps} steps of 8 crops each in bfloat16, a cosine from 5e-4, the network and the
800 photos of the weights that ship, the contrastive loss times 0.1; one thing changed at a time, three seeds, mean and
standard deviation. PSNR in dB of the averaged weights: luma of Set5 and of the first 4 photos of Rain100L, RGB of the
first 4 of CBSD68, noise clipped.

{table}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done yet, seed by seed."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.ablations", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder of training photos")
    add("--sets", type=Path, help="folder with Set5, CBSD68 and Rain100L")
    add("--steps", type=int, default=1200, help="of each run (default 1200)")
    add("--seeds", type=int, nargs="+", default=SEEDS, choices=SEEDS, help="run these (default all)")
    add("--out", type=Path, default=Path("runs/ablations"))
    add("--table", action="store_true", help=f"write {PAGE.relative_to(ROOT)} of what is done")
    args = parser.parse_args(argv)
    if args.table:
        write_table(args.out)
        return 0
    if args.data is None or args.sets is None:
        parser.error("give --data and --sets")
    for seed in args.seeds:
        for name, changes in ABLATIONS.items():
            run(name, changes, seed, args.steps, args.data, args.sets, args.out)
        for task in SCORED:
            changes = {"model.tasks": task}
            run(f"{task} alone", changes, seed, args.steps // len(SCORED), args.data, args.sets, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
