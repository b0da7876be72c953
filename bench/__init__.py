"""Benchmarks, roofline ceilings, reports and compile gates. Run from a source tree; never installed."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process that finds ``bench`` wherever it is started, with ``changes``."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **changes}
