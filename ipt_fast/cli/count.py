"""``ipt-fast count``: what a training step, or restoring a photo, asks of a GPU, counted without one.

The counting is not installed. The command runs ``python -m bench.count`` in the clone.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from ipt_fast.cli.bench import find_clone

EXAMPLE = """example:
  ipt-fast count                                     base, sr2, B=8 and 64, on V100, A100 and H100
  ipt-fast count --device h100 --set recompute=on    another recipe
  ipt-fast count --restore bf16                      a photo restored"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ipt-fast count`` and of ``python -m bench.count``."""
    add = parser.add_argument
    add("--preset", default="base", help="network and recipe (default base)")
    add("--task", default="sr2", help="of the batch (default sr2)")
    add(
        "--batch-size",
        nargs="+",
        type=int,
        metavar="B",
        help="of one GPU (default 8 64); with --restore windows at once (default 128)",
    )
    add("--device", nargs="+", choices=("v100", "a100", "h100"), default=["v100", "a100", "h100"])
    add(
        "--restore", nargs="?", const="fp16", choices=("fp32", "fp16", "bf16", "fp8"),
        help="count restoring a photo of 481 x 321 in that precision (default fp16) instead of a step",
    )  # fmt: skip
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change the recipe, as in train.py")
    add("--out", type=Path, metavar="DIR", help="also write count.md and count.png there")


def run(args: argparse.Namespace) -> int:
    """Count; the exit code of ``python -m bench.count``."""
    options = ["--preset", args.preset, "--task", args.task, "--device", *args.device]
    options += ["--batch-size", *map(str, args.batch_size)] if args.batch_size else []
    options += ["--restore", args.restore] if args.restore else []
    options += ["--set", *args.set] if args.set else []
    options += ["--out", str(args.out.absolute())] if args.out else []
    return subprocess.run([sys.executable, "-m", "bench.count", *options], cwd=find_clone()).returncode
