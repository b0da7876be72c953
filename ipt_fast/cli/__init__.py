"""``ipt-fast``: one command, one module per subcommand, each loaded only when it is asked for.

A subcommand module has ``EXAMPLE``, ``add_arguments(parser)`` and ``run(args) -> int``.
"""

import argparse
import importlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipt_fast import __version__
from ipt_fast.io.signals import exit_code, sigterm_raises, stop_line

GROUPS = {
    "photos": {
        "restore": "restore images: super-resolution, denoising, deraining",
        "app": "a page in your browser: drop a photo, compare, download",
        "eval": "PSNR, SSIM and more on test sets, beside the paper's tables",
        "datasets": "where test sets and photos come from; is a folder complete?",
    },
    "training": {
        "demo": "pre-train the tiny preset on packaged photos (make pretrain)",
        "finetune": "fine-tune a checkpoint on one task (pre-training: train.py)",
        "config": "a recipe as a YAML file, and the schema for editors",
        "index": "check every image of a folder once and write an index",
        "shard": "pack a folder of images into tar shards",
        "punish": "kill ranks of a training over and over, and compare its weights",
    },
    "checkpoints": {
        "convert": "convert a checkpoint to or from safetensors",
        "export": "write one task's network as a torch.export program or ONNX",
        "push": "put a network on the Hugging Face Hub",
        "audit": "whether a checkpoint's activations stay within fp16",
        "visualize": "draw what the embeddings of a checkpoint have learnt",
    },
    "this machine": {
        "info": "which backend each op takes here, and why not the others",
        "bench": "run the benchmarks; table, JSON, CSV and plots",
        "count": "launches, bytes, casts and waits of a training step, without a GPU",
        "completion": "a script by which bash, zsh or tcsh completes these commands",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


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
    """Run ``ipt-fast``; return the exit code: 0 done, 1 failed, 2 wrong usage or input, 130 and 143 stopped."""
    parser = argparse.ArgumentParser(
        prog="ipt-fast", description="The Image Processing Transformer: restore photos, evaluate, train."
    )
    parser.add_argument("--version", action="version", version=f"ipt-fast {__version__}")
    parser.add_argument(
        "command", choices=COMMANDS, metavar="command", help="one of those below; each has its own --help"
    )
    parser.epilog = "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:11} {text}" for name, text in group.items())])
        for title, group in GROUPS.items()
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    argv = sys.argv[1:] if argv is None else argv
    command = parser.parse_args(argv[:1]).command
    with _every_name_prints():
        try:
            with sigterm_raises():
                return _run(command, argv[1:])
        except CommandError as error:
            print(f"ipt-fast {command}: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # ``ipt-fast ... | head``: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed there at exit
            return 141
        except KeyboardInterrupt as stop:
            print(f"ipt-fast {command}: {stop_line(stop)}", file=sys.stderr)
            return exit_code(stop)


def _run(command: str, argv: list[str]) -> int:
    module = importlib.import_module(f"ipt_fast.cli.{command}")
    parser = argparse.ArgumentParser(
        prog=f"ipt-fast {command}",
        description=COMMANDS[command],
        epilog=_wrapped(module.EXAMPLE),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module.run(parser.parse_args(argv))


def _wrapped(text: str) -> str:
    """Fold what is prose at the terminal's width; examples, which are indented, stay a line each."""
    width = shutil.get_terminal_size().columns - 2  # as argparse does
    return "\n".join(line if line.startswith(" ") else textwrap.fill(line, width) for line in text.splitlines())


@contextmanager
def _every_name_prints() -> Iterator[None]:
    """Names of files that are not UTF-8, or that the terminal's encoding lacks, are printed with escapes."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)
