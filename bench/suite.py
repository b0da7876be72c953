"""Run the benchmarks and write their report: what ``ipt-fast bench`` does."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.ceilings import device_name, measure_ceilings
from bench.plots import draw_run
from bench.report import Run, environment, print_run, read_benchmarks, write_run

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent


def bench_names() -> list[str]:
    """Names that ``only`` can take: bench_<name>.py."""
    return sorted(path.stem.removeprefix("bench_") for path in BENCH.glob("bench_*.py"))


def default_folder(device: torch.device) -> Path:
    """bench/results/cpu, or the GPU's name in small letters."""
    name = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return BENCH / "results" / name


def run_suite(
    device: torch.device, *, only: Sequence[str] = (), small: bool = False, folder: Path | None = None
) -> int:
    """Measure the ceilings, run the benchmarks in a process of their own, print and write the report.

    Returns:
        0; 1 where a benchmark failed (the report holds the others and names it).
    """
    folder = folder or default_folder(device)
    ceilings = measure_ceilings(device, seconds=0.2 if small else 1.0)
    with tempfile.TemporaryDirectory() as temporary:
        times, skipped = Path(temporary) / "times.json", Path(temporary) / "skipped.json"
        command = pytest_command(device, only, small, times, skipped)
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": _python_path()}).returncode
        if not times.exists() or not times.stat().st_size:
            print(f"bench: no benchmark gave a result (pytest left with {code})", file=sys.stderr)
            return 1
        results = read_benchmarks(times, ceilings)
        not_measured = json.loads(skipped.read_text())
    run = Run(environment(device), ceilings, results, not_measured)
    print_run(run)
    write_run(run, folder)
    draw_run(run, folder)
    print(f"written: {folder}")
    return 1 if code else 0


def pytest_command(device: torch.device, only: Sequence[str], small: bool, times: Path, skipped: Path) -> list[str]:
    """The command that runs the benchmarks."""
    files = [str(BENCH / f"bench_{name}.py") for name in only or bench_names()]
    options = ["addopts=", "python_files=bench_*.py", "python_functions=bench_* test_*"]
    return [
        *(sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider", "--benchmark-quiet"),
        *(part for option in options for part in ("-o", option)),
        *("--device", device.type, "--benchmark-json", str(times), "--skipped-json", str(skipped)),
        *(["--small"] if small else []),
    ]


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
