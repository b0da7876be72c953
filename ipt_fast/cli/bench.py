"""``ipt-fast bench``: run the benchmarks of the source tree; table, JSON, CSV and plots."""

import argparse
import sys
from pathlib import Path

from ipt_fast.cli import CommandError

EXAMPLE = """example:
  ipt-fast bench                          all, into bench/results/<device>
  ipt-fast bench --only patch_attention --small --out runs/bench"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ipt-fast bench``."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="bench/bench_NAME.py; repeatable")
    parser.add_argument("--small", action="store_true", help="a few rounds and small shapes: does it run at all?")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default bench/results/<device>)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="what does not begin in time is left out")


def run(args: argparse.Namespace) -> int:
    """Exit code 0, or 1 where a benchmark failed."""
    root = _source_tree()
    from ipt_fast.ops._registry import module_missing

    for package in ("pytest", "pytest_benchmark", "matplotlib"):
        if reason := module_missing(package):
            raise CommandError(f'{reason}; pip install "ipt-fast[bench]"')
    if str(root) not in sys.path:
        sys.path.append(str(root))
    import torch

    from bench import suite

    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: torch finds no CUDA device here; leave the option out to measure the CPU")
    known = suite.bench_names()
    if unknown := [name for name in args.only if name not in known]:
        raise CommandError(f"--only {unknown[0]}: no such benchmark; choose from {', '.join(known)}")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.budget is not None and args.budget <= 0:
        raise CommandError(f"--budget must be more than 0 seconds, got {args.budget:g}")
    if args.small and args.out is None:
        raise CommandError("--small needs --out DIR: its few rounds are no result to keep in bench/results")
    return suite.run_suite(device, only=args.only, small=args.small, folder=args.out, budget=args.budget)


def _source_tree() -> Path:
    # The benchmarks are not installed; an editable install or the tree itself has them beside the package.
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "bench" / "suite.py").exists():
            return root
    raise CommandError("the benchmarks are not part of the installed package; run it in a clone of the repository")
