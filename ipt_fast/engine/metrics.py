"""What a run leaves for later reading: sums over steps; log.jsonl, a TensorBoard log, and a run of Weights & Biases."""

import importlib
import json
import logging
import resource
import secrets
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ipt_fast.engine.step import StepResult
from ipt_fast.io.atomic import atomic_write

LOG = "log.jsonl"
_log = logging.getLogger(__name__)


class Pace:
    """Counts batches, patches, FLOPs and the seconds that the host waited for batches, since it was made."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.batches = self.patches = self.flops = 0
        self.waited = 0.0

    def rates(self) -> dict[str, float]:
        """Return the seconds since the beginning, patches a second, and the share of the time spent waiting."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        rates = {"patches_per_s": self.patches / seconds, "data_stall_pct": 100 * self.waited / seconds}
        return {"seconds": seconds, **rates}


class Meter:
    """Adds up losses, times and counts; ``skipped``, ``rescaled``, ``whole_run`` of the run, the rest since a line.

    Args:
        device: whose memory is told.
        peak: FLOP/s of all ranks' devices together that FLOPs are a share of; None where nobody knows.
    """

    def __init__(self, device: torch.device, peak: float | None = None):
        self.device, self.peak = device, peak
        self.skipped = self.rescaled = 0
        self.whole_run = Pace()
        self._reset()

    def _reset(self) -> None:
        self.since = Pace()
        self.degraded = 0.0
        self.results: list[StepResult] = []
        self.per_task: dict[str, list[float]] = defaultdict(list)

    def batch(self, waited: float, patches: int, flops: int) -> None:
        """Count a batch, fetched in ``waited`` seconds; ``patches`` and ``flops`` over all ranks."""
        for pace in (self.since, self.whole_run):
            pace.batches += 1
            pace.patches += patches
            pace.flops += flops
            pace.waited += waited

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
        rates = self.since.rates()
        ms_per_batch = 1000 / max(1, self.since.batches)
        flops_per_s = self.since.flops / rates["seconds"]
        record = {
            "loss": _mean([r.total for r in self.results]),
            **{key: _mean([getattr(r, key) for r in self.results]) for key in ("l1", "contrastive", "grad_norm")},
            "patches_per_s": rates["patches_per_s"],
            "tflops": flops_per_s / 1e12,
            "mfu_pct": 100 * flops_per_s / self.peak if self.peak else None,
            "step_ms": ms_per_batch * rates["seconds"],
            "data_stall_pct": rates["data_stall_pct"],
            "degrade_ms": ms_per_batch * self.degraded,
            "memory_gib": memory_gib(self.device),
            "skipped": self.skipped,
            "rescaled": self.rescaled,
            "l1_of_task": {task: _mean(values) for task, values in sorted(self.per_task.items())},
        }
        self._reset()
        return record


class DeviceTimer:
    """Seconds of device time between two marks; read after the device is known to be done."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Begin, and the second time end, the time to measure."""
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the time between the two marks."""
        begin, end = self.marks
        return begin.elapsed_time(end) / 1000 if self.cuda else end - begin


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
        project: of Weights & Biases, to which the numbers go as well; None for none.
        settings: what it is told of the run.

    Raises:
        ModuleNotFoundError: a project, and wandb is not installed.
    """

    def __init__(self, out: Path, step: int, project: str | None = None, settings: dict[str, Any] | None = None):
        self.path = out / LOG
        self._failed = False
        if self.path.exists():
            kept = []
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError, AttributeError):  # a line cut off by a kill
                    if json.loads(line).get("step", 0) <= step:
                        kept.append(line + "\n")
            with atomic_write(self.path, "w") as file:
                file.writelines(kept)
        self._wandb = _open_wandb(out, project, settings) if project else None
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)
        except ImportError:
            _log.info('no TensorBoard log: tensorboard is not installed (pip install "ipt-fast[train]")')

    def write(self, record: dict[str, Any]) -> None:
        """Write one line. Numbers also go to TensorBoard and Weights & Biases, nested ones as group/name."""
        finite = json.loads(json.dumps(record), parse_constant=lambda name: None)  # JSON has no nan and inf
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(finite) + "\n")
            if self._board is not None:
                for name, value in _scalars(record):
                    self._board.add_scalar(name, value, record["step"])
        except OSError as error:
            if not self._failed:
                _log.warning("the log cannot be written (%s); training goes on", error)
            self._failed = True
        if self._wandb is not None:
            self._wandb.log(dict(_scalars(record)), step=record["step"])

    def close(self) -> None:
        """Flush what TensorBoard and Weights & Biases hold back."""
        if self._wandb is not None:
            self._wandb.finish()
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


def import_wandb(project: str) -> Any:
    """Return wandb, which a project needs.

    Raises:
        ModuleNotFoundError: it is not installed; the message says what to do.
    """
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'wandb={project}: {error}; pip install "ipt-fast[wandb]", or leave it out'
        ) from error


def _open_wandb(out: Path, project: str, settings: dict[str, Any] | None) -> Any:
    """Return the run of Weights & Biases that belongs to a folder; its name there is kept in ``wandb-id``."""
    wandb = import_wandb(project)
    path = out / "wandb-id"
    if not path.exists():
        with atomic_write(path, "w") as file:
            file.write(secrets.token_hex(4))
    name = path.read_text(encoding="utf-8")
    return wandb.init(project=project, id=name, resume="allow", name=out.name, dir=str(out), config=settings)
