"""Fixtures of the benchmarks: where they run, how long, and what could not be measured."""

import functools
import json
from pathlib import Path

import pytest
import torch

from bench.case import measure_call


def pytest_addoption(parser):
    group = parser.getgroup("ipt-fast benchmarks")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.addoption("--device", default=default, help="cpu or cuda (default: cuda where there is one)")
    group.addoption("--small", action="store_true", help="few rounds; a bench may leave out its large shapes")
    group.addoption("--lines", type=Path, default=None, help="append each result as a line of JSON, as it comes")
    group.addoption("--skipped-json", type=Path, default=None, help="write what was not measured, with the reasons")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Return the device to measure on."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def small(request) -> bool:
    """Return whether only a few rounds are wanted."""
    return request.config.getoption("--small")


@pytest.fixture
def measure(request, benchmark, device, small):
    """Return ``measure(call, op=, contender=, shape=, dtype=, work=, ...)``; see bench/case.py."""
    torch.manual_seed(0)
    yield functools.partial(measure_call, benchmark, device=device, small=small)
    path = request.config.getoption("--lines")
    if path is not None and benchmark.stats is not None:
        case = {"extra_info": benchmark.extra_info, "stats": {"data": list(benchmark.stats.stats.data)}}
        with path.open("a") as file:
            file.write(json.dumps(case) + "\n")


SKIPPED: list[dict[str, str]] = []


def pytest_runtest_logreport(report):
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        SKIPPED.append({"case": report.nodeid, "reason": reason.removeprefix("Skipped: ")})
    elif report.failed:
        message = str(report.longrepr).strip().splitlines()[-1] if report.longrepr else "failed"
        SKIPPED.append({"case": report.nodeid, "reason": f"failed: {message}"})


def pytest_sessionfinish(session):
    path = session.config.getoption("--skipped-json", None)
    if path is not None:
        path.write_text(json.dumps(SKIPPED))
