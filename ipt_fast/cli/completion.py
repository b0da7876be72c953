"""``ipt-fast completion``: a script by which a shell completes commands, options, their choices, files and folders."""

import argparse
import importlib

from ipt_fast.cli import COMMANDS, CommandError

EXAMPLE = """examples, each once, then start the shell anew:
  ipt-fast completion bash > ~/.local/share/bash-completion/completions/ipt-fast
  ipt-fast completion zsh > ~/.zfunc/_ipt-fast     # with "fpath+=~/.zfunc; autoload -U compinit; compinit" in ~/.zshrc
extra: completion"""
_FOLDERS, _FILES = ("DIR", "FOLDER", ("GT", "LQ")), ("FILE", "IN", "OUT", "PNG", "auto|FILE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast completion``."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        raise CommandError("needs shtab; pip install 'ipt-fast[completion]'") from error
    parser = argparse.ArgumentParser(prog="ipt-fast")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        importlib.import_module(f"ipt_fast.cli.{name}").add_arguments(command)
        for action in command._actions:
            if action.metavar in _FOLDERS + _FILES:
                kind = shtab.DIRECTORY if action.metavar in _FOLDERS else shtab.FILE
                action.complete = kind  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0
