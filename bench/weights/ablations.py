"""What the paper claims, at a scale of CPU hours: the same short training with one thing changed, three seeds each.

    python -m bench.weights.ablations --data PHOTOS --sets FOLDER --seconds 1800 --out runs/ablations [NAME ...]

Table 5 (contrastive loss), Figure 6 (share of the photos), one task against six, and the task embedding. Every run has
the same CPU time, so that what costs more takes fewer steps; a task alone has a sixth of it, its share of six.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.weights.pilots import SCORED, is_done, run_pilot, score, slug
from ipt_fast.cli.tables import print_table

SEEDS = (0, 1, 2)
ABLATIONS: dict[str, dict[str, object]] = {
    "paper": {},
    "no contrastive loss": {"lam": 0},
    "no task embedding": {"model.task_embed": "false"},
    **{f"{share} % of the photos": {"data_fraction": share / 100} for share in (20, 40, 60, 80)},
    **{f"{task} alone": {"model.tasks": task} for task in SCORED},
}


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.ablations", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=", ".join(ABLATIONS))
    add("--data", type=Path, required=True, help="folder of training photos")
    add("--sets", type=Path, required=True, help="folder with Set5, CBSD68 and Rain100L")
    add("--seconds", type=float, required=True, help="CPU seconds of each run")
    add("--out", type=Path, default=Path("runs/ablations"))
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(ABLATIONS):
        parser.error(f"no ablation {unknown.pop()!r}; there are {', '.join(ABLATIONS)}")
    rows = []
    for name in args.names or ABLATIONS:
        found: list[dict[str, list[float]]] = []
        for seed in SEEDS:
            run = f"{name} seed {seed}"
            folder = args.out / slug(run)
            if not is_done(args.out, run):
                share = 6 if "model.tasks" in ABLATIONS[name] else 1
                changes = {"lr": 5e-4, **ABLATIONS[name], "seed": seed}
                result = {"name": run, **run_pilot(changes, args.data, folder, args.seconds / share)}
                result["scores"] = score(folder / "checkpoint.pt", args.sets)
                (folder / "pilot.json").write_text(json.dumps(result, indent=1) + "\n")
            found.append(json.loads((folder / "pilot.json").read_text())["scores"])
        cells = [spread([scores[task][1] for scores in found]) if task in found[0] else "" for task in SCORED]
        rows.append([name, *cells])
    print_table(f"dB after {args.seconds:g} CPU seconds, {len(SEEDS)} seeds", ["run", *SCORED], rows, list(SCORED))
    return 0


if __name__ == "__main__":
    sys.exit(main())
