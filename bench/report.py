"""From the results of a benchmark run to tables and Markdown. Plots are drawn by bench/plots.py.

python -m bench.report bench/results/amd-epyc          print the table of committed results again, and redraw the plots
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.ceilings import Ceilings
from bench.results_io import Run, read_run, save_run
from ipt_fast.cli.tables import markdown_table, print_table

COLUMNS = ("op", "shape", "contender", "ms", "20..80 %", "faster", "copy", "matmul", "peak MB")
NUMERIC = COLUMNS[3:]
NO_GPU = "No GPU was at hand: nothing here says anything about one.\n"
_QUIET = 0.8  # repeated ceilings within this share of each other


def write_run(run: Run, folder: Path) -> None:
    """Write ``results.json``, ``results.csv`` and ``results.md`` into ``folder``."""
    save_run(run, folder)
    (folder / "results.md").write_text(markdown(run))


def markdown(run: Run) -> str:
    """Return the whole report as Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in run.environment.items())
    parts = [f"# {run.ceilings.device}\n", f"{machine}.\n"]
    parts.append(ceilings_line(run.ceilings) + "; `copy` and `matmul` are shares of these.\n")
    parts.append(markdown_table(COLUMNS, [r.row() for r in run.results], NUMERIC))
    if run.not_measured:
        parts += ["## Not measured\n", markdown_table(("case", "reason"), skipped_rows(run))]
    if run.environment["device"] == "cpu":
        parts.append(NO_GPU)
    return "\n".join(parts)


def ceilings_line(ceilings: Ceilings) -> str:
    """Return both ceilings in one line."""
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in ceilings.matmul_rate.items())
    line = f"Ceilings measured in the same run: copy {ceilings.copy_bandwidth / 1e9:,.1f} GB/s; matmul {rates}"
    if ceilings.steady < _QUIET:
        line += f" (at times down to {ceilings.steady:.0%} of these: the machine was not left alone)"
    return line


def skipped_rows(run: Run) -> list[tuple[str, str]]:
    """Return (case, reason), cases of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for item in run.not_measured:
        by_reason.setdefault(item["reason"], []).append(item["case"].rpartition("::")[2])
    return [(", ".join(cases), reason) for reason, cases in by_reason.items()]


def print_run(run: Run) -> None:
    """Print the tables."""
    title = f"{run.ceilings.device}, {run.ceilings.threads} threads"
    print_table(title, COLUMNS, [r.row() for r in run.results], NUMERIC)
    print(ceilings_line(run.ceilings))
    if run.not_measured:
        print_table("not measured", ("case", "reason"), skipped_rows(run))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a committed run again and redraw its plots."""
    from bench.plots import draw_run

    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder with results.json")
    args = parser.parse_args(argv)
    if not (args.folder / "results.json").exists():
        print(f"bench.report: no results.json in {args.folder}; make one by: ipt-fast bench", file=sys.stderr)
        return 2
    run = read_run(args.folder)
    print_run(run)
    for path in draw_run(run, args.folder):
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
