"""Small faults that the suite has to catch; one file a room, each a list ``MUTANTS``."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault: in ``file``, ``old`` (which occurs once) becomes ``new``; ``tests`` are the paths that catch it."""

    file: str
    old: str
    new: str
    tests: str
