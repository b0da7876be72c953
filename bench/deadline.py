"""A pytest plugin: what has not begun when the time is up is skipped and says so, so that a run keeps what it has.

pytest -p bench.deadline --deadline 60
"""

import time

import pytest

_begun = time.monotonic()


def pytest_addoption(parser):
    help = "skip what has not begun after so many seconds"
    parser.addoption("--deadline", type=float, default=None, metavar="SECONDS", help=help)


def pytest_runtest_setup(item):
    limit = item.config.getoption("--deadline")
    if limit is not None and time.monotonic() - _begun > limit:
        pytest.skip(f"out of time: it did not begin within the {limit:.0f} s of this run")
