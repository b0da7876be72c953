"""A trace of a few steps that opens in Perfetto (https://ui.perfetto.dev) or chrome://tracing, one file a rank."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_WARMUP = 2


def tracer(steps: int, out: Path, rank: int, say: Callable[[str], None]) -> profile | None:
    """A profiler to be entered and stepped; writes ``trace_rank<r>.json`` after ``steps`` steps. None for 0 steps."""
    if steps <= 0:
        return None
    path = out / f"trace_rank{rank}.json"

    def write(finished: profile) -> None:
        finished.export_chrome_trace(str(path))
        say(f"trace of {steps} steps: {path} (opens at https://ui.perfetto.dev)")

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    return profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=_WARMUP, active=steps, repeat=1),
        on_trace_ready=write,
    )
