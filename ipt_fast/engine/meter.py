"""Adds up what the steps did: between two log lines, and over the whole run."""

import resource
import sys
import time
from collections import defaultdict
from typing import Any

import torch

from ipt_fast.engine.step import StepResult


class Meter:
    """Losses, times and counts. ``skipped`` and ``rescaled`` are over the whole run, the rest since the last line.

    ``data_stall_pct`` is the share of the wall time that the host waited for a batch.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.skipped = self.rescaled = 0
        self.begun = time.perf_counter()
        self.all_patches = self.all_batches = 0
        self.all_waited = 0.0
        self._reset()

    def _reset(self) -> None:
        self.started = time.perf_counter()
        self.waited = self.degraded = 0.0
        self.patches = self.batches = 0
        self.results: list[StepResult] = []
        self.per_task: dict[str, list[float]] = defaultdict(list)

    def batch(self, waited: float, patches: int) -> None:
        """A batch was fetched in ``waited`` seconds; ``patches`` over all ranks."""
        self.waited += waited
        self.patches += patches
        self.batches += 1
        self.all_waited += waited
        self.all_patches += patches
        self.all_batches += 1

    def result(self, result: StepResult, task: str, degraded: float) -> None:
        """A step's numbers have arrived; ``degraded`` seconds went into its degradation."""
        self.degraded += degraded
        if result.skipped:
            self.skipped += not result.rescaled
            self.rescaled += result.rescaled
            return
        self.results.append(result)
        self.per_task[task].append(result.l1)

    def record(self) -> dict[str, Any]:
        """The log record since the last one, and start anew."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        record = {
            "loss": _mean([r.total for r in self.results]),
            "l1": _mean([r.l1 for r in self.results]),
            "contrastive": _mean([r.contrastive for r in self.results]),
            "grad_norm": _mean([r.grad_norm for r in self.results]),
            "patches_per_s": self.patches / seconds,
            "step_ms": 1000 * seconds / max(1, self.batches),
            "data_stall_pct": 100 * self.waited / seconds,
            "degrade_ms": 1000 * self.degraded / max(1, self.batches),
            "memory_gib": memory_gib(self.device),
            "skipped": self.skipped,
            "rescaled": self.rescaled,
            "l1_of_task": {task: _mean(values) for task, values in sorted(self.per_task.items())},
        }
        self._reset()
        return record

    def whole_run(self) -> dict[str, float]:
        """Seconds, patches/s and data-stall % since the meter was made."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        return {
            "seconds": seconds,
            "patches_per_s": self.all_patches / seconds,
            "data_stall_pct": 100 * self.all_waited / seconds,
        }

    def seconds_left(self, steps: int) -> float:
        """How long that many steps will take, at the pace of the run so far."""
        return steps * (time.perf_counter() - self.begun) / max(1, self.all_batches)


class DeviceTimer:
    """Seconds of device time between ``with`` and its end; read after the device is known to be done."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.times = [0.0, 0.0]

    def __enter__(self) -> "DeviceTimer":
        self._mark(0)
        return self

    def __exit__(self, *exc: object) -> None:
        self._mark(1)

    def _mark(self, i: int) -> None:
        if self.cuda:
            self.events[i].record()
        self.times[i] = time.perf_counter()

    def seconds(self) -> float:
        """The time between the two marks."""
        if self.cuda:
            return self.events[0].elapsed_time(self.events[1]) / 1000
        return self.times[1] - self.times[0]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process in GiB: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
