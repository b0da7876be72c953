"""``ipt-fast``: one command, one module per subcommand, each loaded only when it is asked for.

A subcommand module has ``EXAMPLE``, ``add_arguments(parser)`` and ``run(args) -> int``.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMANDS = {
    "info": "which backend each op takes on this machine, and why not the others",
    "index": "check every image of a folder once and write an index",
    "shard": "pack a folder of images into tar shards",
    "demo": "pre-train the tiny preset on packaged photos (make pretrain)",
    "restore": "restore images: super-resolution, denoising, deraining",
    "datasets": "where test sets and training photos come from, and whether a folder is complete",
    "eval": "PSNR and SSIM on test sets, beside the paper's tables",
    "finetune": "fine-tune a checkpoint on one task",
    "visualize": "draw what the embeddings of a checkpoint have learnt",
    "convert": "convert a checkpoint to or from safetensors",
    "export": "write one task's network as a torch.export program or ONNX",
    "bench": "run the benchmarks; table, JSON, CSV and plots",
    "count": "launches, bytes, casts and waits of a training step, counted without a GPU",
}


class CommandError(Exception):
    """An error of the user's making: printed as one line, exit code 2."""


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds are of the user's making."""
    try:
        yield
    except kinds as error:
        raise CommandError(str(error)) from error


def check_output(path: Path, force: bool, source: Path | None = None) -> None:
    """Refuse to write over the input, and over any other file unless ``force``."""
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise CommandError(f"{path} is the input itself; choose another -o")
    if path.exists() and not force:
        raise CommandError(f"{path} is already there; --force overwrites")


def check_folder(path: Path, option: str = "") -> None:
    """Refuse a file in a folder that is not there; ``option`` is what gave it."""
    if not path.parent.is_dir():
        raise CommandError(f"{option}{path}: the folder {path.parent} is not there")


def main(argv: list[str] | None = None) -> int:
    """Run ``ipt-fast``; return the exit code: 0 done, 1 failed, 2 wrong usage or input."""
    parser = argparse.ArgumentParser(prog="ipt-fast", description="Image Processing Transformer, fast.")
    parser.add_argument(
        "command", choices=COMMANDS, metavar="command", help="one of those below; each has its own --help"
    )
    parser.epilog = "commands:\n" + "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv[:1])
    module = importlib.import_module(f"ipt_fast.cli.{args.command}")
    sub = argparse.ArgumentParser(
        prog=f"ipt-fast {args.command}",
        description=COMMANDS[args.command],
        epilog=getattr(module, "EXAMPLE", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(sub)
    try:
        return module.run(sub.parse_args(argv[1:]))
    except CommandError as error:
        print(f"ipt-fast {args.command}: {error}", file=sys.stderr)
        return 2
