"""Run the benchmarks and write their report: ``python -m bench.suite``, or ``ipt-fast bench``."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import ROOT, child_environment
from bench.ceilings import SMALL_SIDE, Ceilings, device_name, highest, measure_ceilings
from bench.report import print_run, write_run
from bench.results_io import Result, Run, compare, environment, read_benchmarks, read_run
from ipt_fast.cli.bench import EXAMPLE, add_arguments
from ipt_fast.ops._registry import module_missing

BENCH = ROOT / "bench"


def bench_names() -> list[str]:
    """Return the names that ``only`` can take: bench_<name>.py."""
    return sorted(path.stem.removeprefix("bench_") for path in BENCH.glob("bench_*.py"))


def default_folder(device: torch.device) -> Path:
    """Return bench/results/ and the name of the GPU or the processor in small letters."""
    return BENCH / "results" / re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def run_suite(
    device: torch.device,
    *,
    only: Sequence[str] = (),
    small: bool = False,
    folder: Path | None = None,
    budget: float | None = None,
    add: bool = False,
) -> int:
    """Run each benchmark file in a process of its own and the ceilings around them, print and write the report.

    Args:
        only: names of ``bench_names()``; all if empty.
        small: a few rounds and small shapes.
        folder: of the report.
        budget: seconds for all files, shared out evenly among those still to come; what does not begin in its share
            is reported as not measured.
        add: keep the results that are in the folder, whose ceilings serve for all, and draw nothing.

    Returns:
        0; 1 where a benchmark failed (the report holds the others and names it).
    """
    folder = folder or default_folder(device)
    end = None if budget is None else time.monotonic() + budget
    before = read_run(folder) if add else None
    side = SMALL_SIDE if small else None
    measured = [before.ceilings if before else measure_ceilings(device, 0.2 if small else 1.0, side)]
    results: list[Result] = before.results if before else []
    not_measured: list[dict[str, str]] = before.not_measured if before else []
    known = len(results)
    failed = []
    names = list(only or bench_names())
    for place, name in enumerate(names):
        share = None if end is None else max(10.0, (end - time.monotonic()) / (len(names) - place))
        code, found, skipped = run_file(name, device, small, share, measured[0])
        results += found
        not_measured += skipped
        if code:
            failed.append(name)
        if not add:
            measured.append(measure_ceilings(device, 0.1 if small else 0.5, side))
        run = Run(environment(device), highest(measured), results, not_measured)
        compare(results, run.ceilings)
        if results or add:
            write_run(run, folder)  # after each file: a run that is cut off leaves what it has
    if len(results) == known:
        print("bench: no benchmark gave a result", file=sys.stderr)
        return 1
    print_run(run)
    if add:
        return 1 if failed else 0
    from bench.plots import draw_run  # needs matplotlib, which main() asks for

    draw_run(run, folder)
    print(f"written: {folder}")
    if failed:
        print(f"bench: failed in {', '.join(f'bench_{name}.py' for name in failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_file(
    name: str, device: torch.device, small: bool, seconds: float | None, ceilings: Ceilings
) -> tuple[int, list[Result], list[dict[str, str]]]:
    """Run one benchmark file in a process of its own: what ends that process costs no other file its results.

    Returns:
        (0 where nothing failed, the results, what was not measured).
    """
    print(f"bench_{name}.py", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        times, skipped = Path(temporary) / "times.jsonl", Path(temporary) / "skipped.json"
        options = ["addopts=", "python_files=bench_*.py", "python_functions=bench_* test_*"]
        command = [
            *(sys.executable, "-m", "pytest", str(BENCH / f"bench_{name}.py"), "-q", "--no-header", "--tb=short"),
            *("-p", "no:cacheprovider", "-p", "bench.deadline", "--benchmark-quiet"),
            *(part for option in options for part in ("-o", option)),
            *("--device", device.type, "--lines", str(times), "--skipped-json", str(skipped)),
            *(["--small"] if small else []),
            *([f"--deadline={0.75 * seconds:.0f}"] if seconds is not None else []),
        ]
        try:
            # A case that has begun may still take a while.
            limit = None if seconds is None else seconds + 5
            code = subprocess.run(command, cwd=ROOT, env=child_environment(), timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = -1
        results = read_benchmarks(times, ceilings) if times.exists() else []  # also of a process that was cut off
        if skipped.exists():
            return code, results, json.loads(skipped.read_text())
    reason = "out of time" if code == -1 else f"the process ended with {code} before its results were written"
    return code, results, [{"case": f"bench_{name}.py", "reason": f"failed: {reason}"}]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where a benchmark failed, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.suite", description="Run the benchmarks; table, JSON, CSV and plots.",
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_arguments(parser)
    parser.add_argument("--add", action="store_true", help="to the results that are in --out, with their ceilings")
    args = parser.parse_args(argv)
    if problem := _problem(args):
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return run_suite(device, only=args.only, small=args.small, folder=args.out, budget=args.budget, add=args.add)


def _problem(args: argparse.Namespace) -> str | None:
    """Return what is wrong with the arguments or missing on this machine, or None."""
    if missing := list(filter(None, map(module_missing, ("pytest", "pytest_benchmark", "matplotlib")))):
        return f'{missing[0]}; pip install "ipt-fast[bench]"'
    if args.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: torch finds no CUDA device here; leave the option out to measure the CPU"
    if unknown := [name for name in args.only if name not in bench_names()]:
        return f"--only {unknown[0]}: no such benchmark; choose from {', '.join(bench_names())}"
    if args.budget is not None and args.budget <= 0:
        return f"--budget must be more than 0 seconds, got {args.budget:g}"
    if args.add and not (args.out is not None and (args.out / "results.json").exists()):
        return "--add needs --out DIR with the results.json of an earlier run"
    if args.small and args.out is None:
        return "--small needs --out DIR: its few rounds are no result to keep in bench/results"
    return None


if __name__ == "__main__":
    sys.exit(main())
