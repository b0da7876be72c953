"""``ipt-fast info``: the same as ``python -m ipt_fast.info``."""

import argparse

EXAMPLE = """example:
  ipt-fast info                           what an ordinary call takes
  IPT_FAST_IMPL=eager ipt-fast info       what it takes where the variable binds it"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Print which backend each op takes on this machine, and why not the others."""
    from ipt_fast.info import main

    return main()
