"""From the times of a benchmark run to a table, JSON, CSV and Markdown. Plots are drawn by bench/plots.py.

python -m bench.report bench/results/amd-epyc          print the table of committed results again, and redraw the plots
"""

import argparse
import csv
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.ceilings import Ceilings
from ipt_fast.cli.tables import markdown_table, print_table

COLUMNS = ("op", "shape", "contender", "ms", "20..80 %", "faster", "copy", "matmul", "peak MB")
NUMERIC = ("ms", "20..80 %", "faster", "copy", "matmul", "peak MB")

_QUIET = 0.8  # repeated ceilings within this share of each other


@dataclass
class Result:
    """One contender at one shape. Times in seconds for one call.

    ``faster``: how many times faster than the baseline contender. ``copy`` and ``matmul``: the share of the measured
    copy bandwidth and matrix product rate that the least possible bytes and FLOPs of the operation amount to in that
    time. ``products``: the dtype of the products where it is not ``dtype``. ``peak_bytes``: the most memory held
    beyond what was there before. None: not known, or makes no sense.
    """

    op: str
    direction: str
    shape: str
    contender: str
    dtype: str
    baseline: str
    median: float
    q20: float
    q80: float
    rounds: int
    flops: float
    bytes: float
    cuda_graph: bool
    peak_bytes: int | None
    products: str = ""
    faster: float | None = None
    copy: float | None = None
    matmul: float | None = None

    @property
    def group(self) -> tuple[str, str, str]:
        """What is compared with each other."""
        return self.op, self.direction, self.shape

    def row(self) -> tuple[str, ...]:
        """As the table shows it."""
        op = self.op if self.direction == "forward" else f"{self.op}, {self.direction}"
        return (
            op,
            self.shape,
            f"{self.contender} {self.dtype}",
            _milliseconds(self.median),
            f"{_milliseconds(self.q20)}..{_milliseconds(self.q80)}",
            "" if self.faster is None else f"{self.faster:.2f}x",
            "" if self.copy is None else f"{self.copy:.0%}",
            "" if self.matmul is None else f"{self.matmul:.0%}",
            "" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:.1f}",
        )


@dataclass
class Run:
    """All results of one machine, what could not be measured, and where it was."""

    environment: dict[str, Any]
    ceilings: Ceilings
    results: list[Result]
    not_measured: list[dict[str, str]]


def read_benchmarks(path: Path, ceilings: Ceilings) -> list[Result]:
    """The results in pytest-benchmark's JSON file, compared with their baselines and the ceilings."""
    results = []
    for case in json.loads(path.read_text())["benchmarks"]:
        info = case["extra_info"]
        if "op" not in info:
            continue
        times = sorted(t / info["calls_per_round"] for t in case["stats"]["data"])
        known = {f.name for f in fields(Result)}
        results.append(
            Result(
                **{key: value for key, value in info.items() if key in known},
                median=statistics.median(times),
                q20=quantile(times, 0.2),
                q80=quantile(times, 0.8),
                rounds=len(times),
            )
        )
    compare(results, ceilings)
    return results


def compare(results: Sequence[Result], ceilings: Ceilings) -> None:
    """Fill in ``faster``, ``copy`` and ``matmul``."""
    for r in results:
        rivals = [b for b in results if b.group == r.group and r.baseline in (b.contender, f"{b.contender} {b.dtype}")]
        base = next((b for b in rivals if b.dtype == r.dtype), rivals[0] if rivals else None)
        r.faster = None if base is None else base.median / r.median
        r.copy = r.bytes / r.median / ceilings.copy_bandwidth if r.bytes else None
        rate = ceilings.matmul_rate.get(r.products or r.dtype)
        r.matmul = r.flops / r.median / rate if r.flops and rate else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest of ``ordered``."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def environment(device: torch.device) -> dict[str, Any]:
    """Device, driver and versions, for every result file."""
    from ipt_fast.info import version_rows

    return {
        "device": device.type,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "pytest-benchmark": version("pytest-benchmark"),
        **dict(version_rows()),
    }


def write_run(run: Run, folder: Path) -> None:
    """``results.json``, ``results.csv`` and ``results.md`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(r) for r in run.results]
    content = {
        "environment": run.environment,
        "ceilings": run.ceilings.to_dict(),
        "results": [{k: _short(v) for k, v in row.items()} for row in rows],
        "not_measured": run.not_measured,
    }
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)
    (folder / "results.md").write_text(markdown(run))


def read_run(folder: Path) -> Run:
    """The inverse of ``write_run``."""
    content = json.loads((folder / "results.json").read_text())
    return Run(
        content["environment"],
        Ceilings(**content["ceilings"]),
        [Result(**row) for row in content["results"]],
        content["not_measured"],
    )


def markdown(run: Run) -> str:
    """The whole report as Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in run.environment.items())
    lines = [
        f"# {run.ceilings.device}",
        "",
        f"{machine}.",
        "",
        ceilings_line(run.ceilings) + "; `copy` and `matmul` are shares of these.",
        "",
        markdown_table(COLUMNS, [r.row() for r in run.results], NUMERIC),
    ]
    if run.not_measured:
        lines += ["## Not measured", "", markdown_table(("case", "reason"), skipped_rows(run))]
    if run.environment["device"] == "cpu":
        lines += ["No GPU was at hand: nothing here says anything about one.", ""]
    return "\n".join(lines)


def ceilings_line(ceilings: Ceilings) -> str:
    """Both ceilings in one line."""
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in ceilings.matmul_rate.items())
    line = f"Ceilings measured in the same run: copy {ceilings.copy_bandwidth / 1e9:,.1f} GB/s; matmul {rates}"
    if ceilings.steady < _QUIET:
        line += f" (at times down to {ceilings.steady:.0%} of these: the machine was not left alone)"
    return line


def skipped_rows(run: Run) -> list[tuple[str, str]]:
    """(case, reason), cases of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for item in run.not_measured:
        by_reason.setdefault(item["reason"], []).append(item["case"].rpartition("::")[2])
    return [(", ".join(cases), reason) for reason, cases in by_reason.items()]


def print_run(run: Run) -> None:
    """The table on the screen."""
    print_table(
        f"{run.ceilings.device}, {run.ceilings.threads} threads", COLUMNS, [r.row() for r in run.results], NUMERIC
    )
    print(ceilings_line(run.ceilings))
    if run.not_measured:
        print_table("not measured", ("case", "reason"), skipped_rows(run))


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 1 else f"{seconds * 1e3:.4g}"


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


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
