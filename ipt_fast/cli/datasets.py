"""``ipt-fast datasets``: where each set comes from, and whether a folder holds what it should."""

import argparse
from pathlib import Path

from ipt_fast.cli import CommandError, user_errors
from ipt_fast.cli.tables import print_table
from ipt_fast.evaluation.datasets import DATASETS, check_dataset

EXAMPLE = """examples:
  ipt-fast datasets
  ipt-fast datasets Set5 --check testsets/Set5
nothing is downloaded; exit code 1: the folder is not what it should be"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast datasets``."""
    parser.add_argument("name", nargs="?", metavar="SET", help="one set (default: all of them)")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="compare a folder with SET")


def run(args: argparse.Namespace) -> int:
    """Print the table, or what is wrong with a folder."""
    if args.name is not None and args.name.lower() not in DATASETS:
        raise CommandError(f"{args.name} is not known; known are {', '.join(data.name for data in DATASETS.values())}")
    if args.check is None:
        chosen = [DATASETS[args.name.lower()]] if args.name else list(DATASETS.values())
        rows = [[data.name, data.use, f"{data.images:,}", data.source] for data in chosen]
        print_table("data sets", ["set", "for", "images", "source"], rows, ["images"])
        return 0
    if args.name is None:
        raise CommandError("--check needs to know which set: ipt-fast datasets SET --check FOLDER")
    data = DATASETS[args.name.lower()]
    with user_errors(OSError):
        said = check_dataset(data, args.check)
    for line in said:
        print(line)
    print(f"{args.check}: {'not what it should be; get it from ' + data.source if said else f'{data.name}, complete'}")
    return 1 if said else 0
