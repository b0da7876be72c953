"""``ipt-fast bench``: run the benchmarks of a clone; table, JSON, CSV and plots.

The benchmarks are not installed. The command runs ``python -m bench.suite`` in the clone.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from ipt_fast.cli import CommandError

EXAMPLE = """example:
  ipt-fast bench                          all, into bench/results/<device>
  ipt-fast bench --only patch_attention --small --out runs/bench"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ipt-fast bench`` and of ``python -m bench.suite``."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="bench/bench_NAME.py; repeatable")
    parser.add_argument("--small", action="store_true", help="a few rounds and small shapes: does it run at all?")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default bench/results/<device>)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="what does not begin in time is left out")


def run(args: argparse.Namespace) -> int:
    """Run the benchmarks; the exit code of ``python -m bench.suite``."""
    options = [f"--only={name}" for name in args.only] + ["--small"] * args.small
    given = {"device": args.device, "out": args.out and args.out.absolute(), "budget": args.budget}
    options += [f"--{name}={value}" for name, value in given.items() if value is not None]
    return subprocess.run([sys.executable, "-m", "bench.suite", *options], cwd=find_clone()).returncode


def find_clone() -> Path:
    """Return the clone that holds the benchmarks."""
    # An editable install lies in the clone; otherwise the command is run in one.
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "bench" / "suite.py").exists():
            return root
    raise CommandError("the benchmarks are not part of the installed package; run it in a clone of the repository")
