"""Faults put into the product on purpose, and the tests that must notice: ``python -m tests.mutants.run``."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        file: path from the root of the repository.
        old: text that stands exactly once in the file.
        new: what stands there instead.
        tests: arguments of pytest, at least one of whose tests must then fail.
    """

    file: str
    old: str
    new: str
    tests: str
