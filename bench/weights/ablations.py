"""What the paper claims, at a scale of minutes: the same short training with one thing changed, three seeds each.

    python -m bench.weights.ablations --data PHOTOS --sets FOLDER [--steps 800] [--out runs/ablations] [ROW ...]
    python -m bench.weights.ablations --table runs/ablations [runs/longer ...]

Table 5 (contrastive loss), Figure 6 (share of the photos), the task embedding, and one task against six. All have the
same steps, so that what costs more takes longer; a task alone has a sixth of them, as many as six tasks leave to each.
A seed decides start, crops, noise and the order of tasks. Seeds may run side by side, each on a core: ``--seeds 0`` in
one terminal, ``--seeds 1 2`` in another, in the same folder. Another number of steps is another folder.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.weights.pilots import ROOT, SCORED, end_run, is_done, mean_gain, read_result, score, slug, start_run
from ipt_fast.checkpoint import load_training_state
from ipt_fast.cli.tables import markdown_table

PAGE = ROOT / "bench" / "results" / "ablations.md"
SEEDS = (0, 1, 2)
COMMON = {"lr": 5e-4, "schedule": "cosine", "precision": "bf16", "checkpoint_every": 200}
FULL = "as the paper"
ALONE = "each task alone, a sixth of the steps"
CHANGES: dict[str, dict[str, object]] = {
    FULL: {},
    "no contrastive loss": {"lam": 0},
    "no task embedding": {"model.task_embed": "false"},
    **{f"{share} % of the photos": {"data_fraction": share / 100} for share in (80, 60, 40, 20)},
}
# A row of the table -> its runs, which have all six tasks between them -> what each of them changes.
ROWS = {name: {name: changes} for name, changes in CHANGES.items()}
# A sixth of BASE's warm-up and of its average's memory, too: else a fourth of a short run's average is its start.
ROWS[ALONE] = {f"{task} alone": {"model.tasks": task, "warmup_steps": 8, "ema": 0.94} for task in SCORED}

Scores = dict[str, tuple[float, float]]  # task -> (dB of the input, dB of the network)


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


def read(row: str, seed: int, out: Path) -> Scores | None:
    """Return the scores of a row's runs with a seed, or None if one of them is not done."""
    names = [f"{name} seed {seed}" for name in ROWS[row]]
    if not all(is_done(out, name) for name in names):
        return None
    found: Scores = {}
    for name in names:
        found |= read_result(out, name)["scores"]
    return found


def spread(values: Sequence[float], sign: str = "") -> str:
    """Return mean and standard deviation."""
    mean = round(statistics.mean(values), 2) + 0.0  # no -0.00
    return f"{mean:{sign}.2f} ± {statistics.stdev(values):.2f}"


def table(out: Path) -> str:
    """Return a heading and the table of the rows that are done with every seed."""
    found = {row: [scores for seed in SEEDS if (scores := read(row, seed, out))] for row in ROWS}
    gains = {row: [mean_gain(scores) for scores in all_scores] for row, all_scores in found.items()}
    rows = []
    for row, all_scores in found.items():
        if len(all_scores) == len(found[FULL]) == len(SEEDS):
            by_task = [spread([scores[task][1] for scores in all_scores]) for task in SCORED]
            beyond = [a - b for a, b in zip(gains[row], gains[FULL], strict=True)]
            rows.append([row, "" if row == FULL else spread(beyond, "+"), spread(gains[row]), *by_task])
    columns = ["run", f"beyond {FULL}", "mean gain", *SCORED]
    steps = read_result(out, f"{FULL} seed 0")["steps"]
    return f"## {steps:,} steps\n\n{markdown_table(columns, rows, columns[1:])}"


PAGE_TEXT = """# What the paper claims, at the scale of minutes

`python -m bench.weights.ablations`: short trainings with 8 crops a step in bfloat16, a cosine from 5e-4, the network
and the 800 photos of the weights that ship, the contrastive loss times 0.1; one thing changed at a time, three seeds,
mean and standard deviation. A task alone has a sixth of the steps, so that each task sees as many crops; its warm-up
and the memory of its average are a sixth as long, too. PSNR in dB of the averaged weights: luma of Set5 and of the
first 4 photos of Rain100L, RGB of the first 4 of CBSD68, noise clipped. `mean gain` is over the input, in the mean of
the tasks; `beyond {full}` is how much more of it a run has than that one with the same seed.

{tables}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done yet, seed by seed."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.ablations", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help=f"run these (default all): {', '.join(ROWS)}".replace("%", "%%"))
    add("--data", type=Path, help="folder of training photos")
    add("--sets", type=Path, help="folder with Set5, CBSD68 and Rain100L")
    add("--steps", type=int, default=800, help="of each run (default 800)")
    add("--seeds", type=int, nargs="+", default=SEEDS, choices=SEEDS, help="run these (default all)")
    add("--out", type=Path, default=Path("runs/ablations"))
    add("--table", type=Path, nargs="+", metavar="OUT", help="write the page of these folders")
    args = parser.parse_args(argv)
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no row {unknown.pop()!r}; there are {', '.join(ROWS)}")
    if args.table:
        PAGE.write_text(PAGE_TEXT.format(full=FULL, tables="\n".join(table(out) for out in args.table)))
        print(PAGE.read_text())
        return 0
    if args.data is None or args.sets is None:
        parser.error("give --data and --sets")
    for seed in args.seeds:
        for row in args.rows or ROWS:
            for name, changes in ROWS[row].items():
                run(name, changes, seed, args.steps // len(ROWS[row]), args.data, args.sets, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
