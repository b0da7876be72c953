"""What a run leaves for later reading: sums over steps, log.jsonl and a TensorBoard log, a trace for Perfetto."""

import json
import logging
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ipt_fast.engine.step import StepResult
from ipt_fast.io.atomic import atomic_write

LOG = "log.jsonl"
_TRACE_WARMUP = 2  # steps that the profiler needs before those of the trace
_log = logging.getLogger(__name__)


class Meter:
    """Adds up losses, times and counts. ``skipped`` and ``rescaled`` are of the whole run, the rest since a line.

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
        """Count a batch, fetched in ``waited`` seconds; ``patches`` over all ranks."""
        self.waited += waited
        self.patches += patches
        self.batches += 1
        self.all_waited += waited
        self.all_patches += patches
        self.all_batches += 1

    def result(self, result: StepResult, task: str, degraded: float) -> None:
        """Take in a step's numbers; ``degraded`` seconds went into its degradation."""
        self.degraded += degraded
        if result.skipped:
            self.skipped += not result.rescaled
            self.rescaled += result.rescaled
            return
        self.results.append(result)
        self.per_task[task].append(result.l1)

    def record(self) -> dict[str, Any]:
        """Return the log record since the last one, and start anew."""
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
        """Return seconds, patches/s and data-stall % since the meter was made."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        return {
            "seconds": seconds,
            "patches_per_s": self.all_patches / seconds,
            "data_stall_pct": 100 * self.all_waited / seconds,
        }

    def seconds_left(self, steps: int) -> float:
        """Estimate how long that many steps will take, at the pace of the run so far."""
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
        """Return the time between the two marks."""
        if self.cuda:
            return self.events[0].elapsed_time(self.events[1]) / 1000
        return self.times[1] - self.times[0]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def memory_gib(device: torch.device) -> float:
    """Return the peak memory of this process in GiB: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class RunLog:
    """Writes ``log.jsonl`` and, where tensorboard is installed, ``tensorboard/``. A full disk is warned of once.

    Args:
        out: folder of the run.
        step: the step that the run goes on from; lines of later steps, from a run that was cut off, are dropped.
    """

    def __init__(self, out: Path, step: int):
        self.path = out / LOG
        self._failed = False
        _drop_after(self.path, step)
        self._board = self._open_board(out / "tensorboard", step)

    def _open_board(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            _log.info('no TensorBoard log: tensorboard is not installed (pip install "ipt-fast[train]")')
            return None
        return SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, record: dict[str, Any]) -> None:
        """Write one line. Numbers also go to TensorBoard, nested ones as group/name."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(record)) + "\n")
            if self._board is not None and "step" in record:
                for name, value in _scalars(record):
                    self._board.add_scalar(name, value, record["step"])
        except OSError as error:
            if not self._failed:
                _log.warning("the log cannot be written (%s); training goes on", error)
            self._failed = True

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is None:
            return
        try:
            self._board.close()
        except OSError as error:
            _log.warning("the TensorBoard log cannot be written (%s)", error)


def _scalars(record: dict[str, Any], prefix: str = "train/"):
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("step", "time"):
            yield prefix + key, value


def _finite(value: Any) -> Any:
    """Replace nan and inf, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line)
        except (json.JSONDecodeError, AttributeError):
            continue  # a line cut off by a kill
    with atomic_write(path, "w") as file:
        file.write("".join(line + "\n" for line in kept))


def write_config(out: Path, config: dict[str, Any], run: dict[str, Any]) -> None:
    """Write ``config.json``: the settings of a run, and what they came to on this machine."""
    text = json.dumps({"config": config, "run": run}, indent=2)
    with atomic_write(out / "config.json", "w") as file:
        file.write(text + "\n")


def tracer(steps: int, left: int, out: Path, rank: int) -> profile | None:
    """Return a profiler to be entered and stepped, None for 0 steps or, with a warning, too few steps ``left``.

    It writes ``trace_rank<r>.json`` after ``steps`` steps, for https://ui.perfetto.dev or chrome://tracing.
    """
    if steps + _TRACE_WARMUP > left and steps:
        _log.warning(
            "no trace: one of %d steps needs %d, and the run has %d left; profile fewer, or train longer",
            steps, steps + _TRACE_WARMUP, left,
        )  # fmt: skip
    if steps <= 0 or steps + _TRACE_WARMUP > left:
        return None
    path = out / f"trace_rank{rank}.json"

    def write(finished: profile) -> None:
        finished.export_chrome_trace(str(path))
        _log.info("trace of %d steps: %s (opens at https://ui.perfetto.dev)", steps, path)

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    return profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=_TRACE_WARMUP, active=steps, repeat=1),
        on_trace_ready=write,
    )
