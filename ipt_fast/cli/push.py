"""``ipt-fast push``: a network to the Hugging Face Hub."""

import argparse
from pathlib import Path

from ipt_fast.checkpoint import CheckpointError
from ipt_fast.checkpoint.publish import push_network
from ipt_fast.cli import user_errors
from ipt_fast.cli._network import PRECISIONS, load_network

EXAMPLE = """example:
  ipt-fast push runs/base/checkpoint.pt owner/ipt-base --private
extra: hub; who you are there: hf auth login, or HF_TOKEN
the network is one file, model.safetensors; every command then takes hf://owner/ipt-base as its checkpoint
a README.md that is there stays as it is
exit codes: 0 written, 2 wrong usage or input, or the Hub refuses"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast push``."""
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="FILE", help="released, own or safetensors")
    add("repo", metavar="OWNER/NAME", help="made where it is not there")
    add("--private", action="store_true", help="a repository that is made is not public")
    add("--task", help="keep this task alone")
    add("--num-heads", type=int, metavar="N", help="attention heads, where FILE does not say it")
    add("--dtype", choices=tuple(PRECISIONS), default="fp32", help="of the file (default fp32)")
    add("--message", metavar="TEXT", help="of the commit")


def run(args: argparse.Namespace) -> int:
    """Load, write, say where."""
    model = load_network(args.checkpoint, args.task, num_heads=args.num_heads)
    with user_errors(CheckpointError):
        print(push_network(model, args.repo, private=args.private, dtype=PRECISIONS[args.dtype], message=args.message))
    return 0
