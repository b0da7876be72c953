"""Looking into a run: a trace of some steps, ranges for Nsight Systems, a snapshot of the GPU's memory."""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ipt_fast.engine.config import ConfigError

_WARMUP = 2  # steps that the profiler needs before those of the trace
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """What to record.

    Args:
        trace_steps: write ``trace_rank<r>.json`` of that many steps, for https://ui.perfetto.dev; 0 for none.
        snapshot_steps: write ``memory_rank<r>.pickle`` with the GPU's allocations of the first steps, that many, for
            https://pytorch.org/memory_viz; 0 for none. Where the run ends before, as out of memory, it is written then.
        nvtx: mark the parts of a step as NVTX ranges.
    """

    trace_steps: int = 0
    snapshot_steps: int = 0
    nvtx: bool = False

    def __post_init__(self) -> None:
        for what, steps in (("profile", self.trace_steps), ("take a memory snapshot of", self.snapshot_steps)):
            if steps < 0:
                raise ConfigError(f"the number of steps to {what} must be at least 0 (got {steps})")

    def check(self, device: torch.device) -> None:
        """Refuse what a device does not have.

        Raises:
            ConfigError: names the option.
        """
        for option, asked in (("--nvtx", self.nvtx), ("--memory-snapshot", self.snapshot_steps)):
            if asked and device.type != "cuda":
                raise ConfigError(f"{option} needs an NVIDIA GPU (found {device.type}); --profile works everywhere")

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        """Name a part of a step, in the trace and, if asked for, as an NVTX range."""
        with record_function(name):
            if self.nvtx:
                torch.cuda.nvtx.range_push(name)
            try:
                yield
            finally:
                if self.nvtx:
                    torch.cuda.nvtx.range_pop()

    @contextmanager
    def running(self, out: Path, rank: int, left: int) -> Iterator[Callable[[], None]]:
        """Record during the context; yields what is to be called after each of the ``left`` steps."""
        trace = _tracer(self.trace_steps, left, out / f"trace_rank{rank}.json")
        snapshot = _snapshot(self.snapshot_steps, out / f"memory_rank{rank}.pickle")
        next(snapshot, None)

        def step() -> None:
            if trace is not None:
                trace.step()
            next(snapshot, None)

        with trace or nullcontext():
            try:
                yield step
            finally:
                snapshot.close()


def _tracer(steps: int, left: int, path: Path) -> profile | None:
    """Return a profiler to be entered and stepped, None for 0 steps or, with a warning, too few steps ``left``."""
    if steps == 0:
        return None
    if steps + _WARMUP > left:
        _log.warning(
            "no trace: one of %d steps needs %d, and the run has %d left; profile fewer, or train longer",
            steps, steps + _WARMUP, left,
        )  # fmt: skip
        return None

    def write(finished: profile) -> None:
        finished.export_chrome_trace(str(path))
        _log.info("trace of %d steps: %s (opens at https://ui.perfetto.dev)", steps, path)

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    plan = schedule(wait=0, warmup=_WARMUP, active=steps, repeat=1)
    return profile(activities=activities, schedule=plan, on_trace_ready=write)


def _snapshot(steps: int, path: Path) -> Generator[None, None, None]:
    """Record allocations until resumed ``steps`` times, or closed; then write them."""
    if steps == 0:
        return
    torch.cuda.memory._record_memory_history()
    try:
        for _ in range(steps):
            yield
    finally:
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)
        _log.info("memory of the first steps: %s (opens at https://pytorch.org/memory_viz)", path)
