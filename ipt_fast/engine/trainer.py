"""The training loop: batches in, steps, log lines and checkpoints out; callable in-process."""

import json
import logging
import math
import signal as signals
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from ipt_fast.checkpoint import (
    LATEST,
    CheckpointError,
    generator_states,
    keep_best,
    load_training_state,
    newest_good,
    restore_generators,
    save_checkpoint,
)
from ipt_fast.data import Batch, CropLoader
from ipt_fast.engine.checkpoint_writer import CheckpointWriter
from ipt_fast.engine.config import TrainConfig, learning_rate, log_differences, total_steps
from ipt_fast.engine.contradictions import check, warn
from ipt_fast.engine.distributed import DistInfo, any_rank, broadcast_parameters, lost_rank
from ipt_fast.engine.flops import peak_flops, step_flops
from ipt_fast.engine.memory import warn_of_memory
from ipt_fast.engine.metrics import DeviceTimer, Meter, RunLog
from ipt_fast.engine.precision import matmul_arithmetic
from ipt_fast.engine.step import Degrade, StepOutcome, TrainStep
from ipt_fast.engine.terminal import StopRequest, TrainingProgress
from ipt_fast.engine.watch import Watch
from ipt_fast.io.atomic import atomic_write
from ipt_fast.model import IPT
from ipt_fast.ops import degrade as degrade_op

_log = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """Several steps in a row had a loss or gradient that is not finite."""


class NotSavedError(RuntimeError):
    """The last checkpoint of a run could not be written."""


class LoaderError(RuntimeError):
    """The loader failed, as where the system has killed one of its workers, or another rank has left the run."""


@dataclass(frozen=True)
class Summary:
    """What a call of ``Trainer.train`` did. ``loss``, ``l1`` and ``contrastive`` are those of the last log line.

    ``signal``: number of the signal that ended the run before its last step, or None.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    l1: float
    contrastive: float
    skipped: int
    seconds: float
    patches_per_s: float
    data_stall_pct: float
    signal: int | None
    checkpoint: Path

    @property
    def finished(self) -> bool:
        """Return whether the run has come to its last step."""
        return self.step >= self.total_steps


def initial_model(config: TrainConfig) -> IPT:
    """Return the network that a run starts from, drawn from its seed whatever the caller's defaults are."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(), torch.device("cpu"):
            torch.manual_seed(config.seed)
            return IPT(config.model)
    finally:
        torch.set_default_dtype(dtype)


class Trainer:
    """Trains a network and leaves checkpoint, config.json, log.jsonl and a TensorBoard log in a folder.

    Args:
        config: see ``TrainConfig``.
        loader: this rank's part of the batches.
        out: folder of the run; made if absent.
        dist_info: this rank; by default one process, on the GPU if there is one.
        model: the network to train; by default one initialised from ``config.seed``.
        degrade: crops to (input, target); by default ``ipt_fast.ops.degrade``.
        console: where a progress bar goes, if it is a terminal; by default there is none. Lines are log records.
        watch: traces, ranges and snapshots to record.
        given: names of settings that somebody asked for, also where they equal the default.
        validate: network -> task -> PSNR in dB, as ``ipt_fast.evaluation.validation`` does; called with each checkpoint
            that is due, on rank 0. The best one is kept as ``best.pt``.

    Raises:
        ConfigError: settings that cannot be trained with, before anything is written.
    """

    def __init__(
        self,
        config: TrainConfig,
        loader: CropLoader,
        out: str | Path,
        *,
        dist_info: DistInfo | None = None,
        model: IPT | None = None,
        degrade: Degrade = degrade_op,
        console: Console | None = None,
        watch: Watch = Watch(),  # noqa: B008 (it cannot change)
        given: Collection[str] | None = None,
        validate: Callable[[IPT], Mapping[str, float]] | None = None,
    ):
        self.config, self.loader, self.out = config, loader, Path(out)
        self.dist_info = dist_info or DistInfo(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self.total = total_steps(config, loader.batches_per_epoch)
        check(config, self.dist_info.world_size)
        warn(config, self.total, loader.batches_per_epoch, given)
        warn_of_memory(config, self.dist_info)
        if model is None:
            model = initial_model(config)
        model = model.to(self.dist_info.device).train()
        broadcast_parameters(model, self.dist_info.world_size)
        self.training = TrainStep(model, config, self.dist_info, degrade)
        self.step = 0
        self.saved_at = -1
        self.saved_time = time.monotonic()  # of the last checkpoint, or of the beginning
        self.writer = CheckpointWriter(self.dist_info.device)
        self.generators: dict[str, Any] | None = None  # where a resumed run goes on drawing
        self.stopping = False
        peak = peak_flops(config, self.training.precision, self.dist_info.device)
        self.peak = None if peak is None else peak * self.dist_info.world_size
        self.meter = Meter(self.dist_info.device, self.peak)
        self.last: dict[str, Any] = {}
        self.watch = watch
        self.validate = validate if self.dist_info.is_main else None
        self.best = -math.inf  # PSNR of best.pt
        self.unread: tuple[StepOutcome, str, DeviceTimer] | None = None
        self.bad_in_a_row = 0
        seen = console if self.dist_info.is_main else None
        self.progress = TrainingProgress(seen, config.preset, self.total, config.lam)

    @property
    def model(self) -> IPT:
        """Return the network being trained."""
        return self.training.model

    @property
    def epoch(self) -> int:
        """Return the epoch of the next step, from 0."""
        return self.step // self.loader.batches_per_epoch

    def resume(self, choice: str | Path) -> bool:
        """Go on from a checkpoint: a path, or "auto" for the newest good one in ``out``. False where there is none.

        The settings of this run win over those of the file, and are logged where they differ; moments and counts come
        from the file. Everything is compared before anything is loaded.

        Raises:
            FileNotFoundError, CheckpointError: it cannot be read, or is of another network; nothing is loaded then.
        """
        found = newest_good(self.out) if choice == "auto" else (Path(choice), load_training_state(choice))
        if found is None:
            return False
        path, state = found
        self.training.check_state(str(path), state)
        try:
            self.loader.load_state_dict(state["loader"])
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        log_differences(state["config"], self.config)
        self.training.load_state_dict(state)
        states = state["rng"]  # a rank that the checkpoint does not have starts as its last one
        self.generators = states[min(self.dist_info.rank, len(states) - 1)]
        self.step, self.best = int(state["step"]), float(state.get("best", -math.inf))
        self.saved_at = self.step if path.parent == self.out else -1
        _log.info("goes on from %s at step %d of %d", path, self.step, self.total)
        return True

    def train(self) -> Summary:
        """Train to the last step, or until SIGTERM or Ctrl-C; a checkpoint is written in both cases.

        Random number generators, warning filters and signal handlers are the caller's again afterwards.

        Raises:
            DivergedError: ``max_bad_steps`` steps in a row were not finite.
            LoaderError: the loader failed, and rank 0 has written a checkpoint of the steps before that; or another
                rank has left the run, and the last checkpoint due is there.
            NotSavedError: the last checkpoint could not be written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.training.precision == "fp32" and self.dist_info.device.type == "cuda" and not self.config.tf32:
            _log.info("fp32: TF32 is off; --set tf32=true switches it on, with 10 bits of mantissa in GEMMs' inputs")
        self.meter = Meter(self.dist_info.device, self.peak)
        self.saved_time = time.monotonic()
        with ExitStack() as stack:
            request = stack.enter_context(StopRequest())
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(matmul_arithmetic(self.config.tf32))
            stack.callback(restore_generators, generator_states(self.dist_info.device), self.dist_info.device)
            stack.callback(self.loader.close)
            stack.callback(self.writer.wait)  # whatever ends the run: a checkpoint that is being written becomes whole
            if self.generators is None:
                torch.manual_seed(self.config.seed)
            else:
                restore_generators(self.generators, self.dist_info.device)
            log = None
            if self.dist_info.is_main:
                self._write_config()
                log = RunLog(self.out, self.step, self.config.wandb, self.config.to_dict())
                stack.enter_context(closing(log))
            self._train(request, log)
        return Summary(
            step=self.step,
            total_steps=self.total,
            epoch=self.epoch,
            **{key: self.last.get(key, float("nan")) for key in ("loss", "l1", "contrastive")},
            skipped=self.meter.skipped,
            signal=(request.signal or signals.SIGTERM) if self.step < self.total else None,
            checkpoint=self.out / LATEST,
            **self.meter.whole_run.rates(),
        )

    def _train(self, request: StopRequest, log: RunLog | None) -> None:
        batches = iter(self.loader)
        recorded = self.watch.running(self.out, self.dist_info.rank, self.total - self.step)
        with self.progress, recorded as record_step:
            while self.step < self.total and not self.stopping:
                self._one_step(batches, request)
                record_step()
                self.progress.step(self.step, self.epoch)
                if self.step % self.config.log_every == 0 or self.meter.whole_run.batches == 1:
                    self._log_record(log)
                due = self._is_due() or self._is_kept()
                if due and self.step < self.total:
                    self._begin_save(self._is_best(log))
                self._stop_if_diverged()
            self._flush()
            self._stop_if_diverged()
            if self.meter.since.batches:
                self._log_record(log)
            if reason := self._save(self.step == self.total and self._is_best(log)):
                raise NotSavedError(
                    f"the run ends at step {self.step} of {self.total} without its last checkpoint: {reason}; make "
                    f"room in {self.out}, and train the steps since the one before again with --resume auto"
                )
            if self.step < self.total:
                name = signals.Signals(request.signal).name if request.signal else "another rank"
                _log.info("stopped by %s after step %d of %d; --resume auto goes on", name, self.step, self.total)

    def _one_step(self, batches: Iterator[Batch], request: StopRequest) -> None:
        started = time.perf_counter()
        try:
            with self.watch.range("data"):
                batch = next(batches)
        except Exception as error:  # of workers, DALI, a file system: whatever stands behind the loader
            raise self._loader_error(error) from error
        request.hold_child_signal()
        patches = len(batch.gt) * self.dist_info.world_size
        flops = step_flops(self.config.model, batch.task, patches)
        self.meter.batch(time.perf_counter() - started, patches, flops)
        timer = DeviceTimer(self.dist_info.device)
        timer.mark()
        with self.watch.range("degrade"):
            x, target = self.training.prepare(batch)
        timer.mark()
        rate = learning_rate(self.config, self.step, self.total)
        try:
            with self.watch.range(f"step {batch.task}"):
                outcome = self.training(x, target, batch.task, rate, stop=request.signal is not None)
        except RuntimeError as error:
            if not lost_rank(error):
                raise
            raise LoaderError(
                f"another rank has left the run after step {self.step} of {self.total}, its own message says why "
                f"({str(error).splitlines()[0]:.120}); --resume auto goes on from the last checkpoint"
            ) from error
        self.step += 1
        self._flush()  # the step before: the device works on this one meanwhile
        self.unread = (outcome, batch.task, timer)

    def _flush(self) -> None:
        """Take in the numbers of the last step. They are the same on all ranks, and so is what follows from them."""
        if self.unread is None:
            return
        outcome, task, timer = self.unread
        self.unread = None
        result = outcome.read()
        self.meter.result(result, task, timer.seconds())
        self.stopping |= result.stop
        self.bad_in_a_row = self.bad_in_a_row + 1 if result.skipped and not result.rescaled else 0
        if self.bad_in_a_row == 1:
            _log.warning(
                "step skipped near %d: loss %g, gradient norm %g, task %s",
                self.step, result.total, result.grad_norm, task,
            )  # fmt: skip

    def _stop_if_diverged(self) -> None:
        if self.bad_in_a_row < self.config.max_bad_steps:
            return
        reason = self._save()
        saved = f"no checkpoint: {reason}" if reason else f"the weights of {self.out / LATEST} are finite"
        raise DivergedError(
            f"{self.bad_in_a_row} steps in a row before step {self.step} had a loss or gradient that is not finite; "
            f"their updates were left out and {saved}. Usual causes: a learning "
            f"rate too high (lr={self.config.lr:g}: lower it, or set clip_grad=1), or weights that have grown too "
            "large for half precision (--precision fp32 tells)"
        )

    def _loader_error(self, error: Exception) -> LoaderError:
        """Save what there is. The other ranks are in the middle of their step and take no part in it."""
        reason = self._save(alone=True) if self.dist_info.is_main else "rank 0 writes them"
        saved = f"no checkpoint: {reason}" if reason else f"{self.out / LATEST} holds the steps before"
        lines = str(error).strip().splitlines() or ["no more batches"]
        return LoaderError(
            f"the loader failed after step {self.step} of {self.total}: {type(error).__name__}: {lines[0]}; {saved}. "
            "Where a worker was killed, memory may be short: set fewer --workers. --resume auto goes on"
        )

    def _log_record(self, log: RunLog | None) -> None:
        self._flush()
        stats, whole_run = self.loader.stats(), self.meter.whole_run
        self.last = {
            "step": self.step,
            "epoch": self.epoch,
            "time": time.time(),
            "lr": learning_rate(self.config, self.step - 1, self.total),
            **self.meter.record(),
            "decode_ms": stats.get("decode_ms"),
            "bad_files": stats.get("bad_files", 0),
            "eta_s": (self.total - self.step) * whole_run.rates()["seconds"] / max(1, whole_run.batches),
        }
        if log is not None:
            log.write(self.last)
            self.progress.update(self.last)

    def _is_due(self) -> bool:
        """Return whether it is time for a checkpoint, the same on all ranks."""
        if not self.config.checkpoint_minutes:
            return self.step % self.config.checkpoint_every == 0
        if self.step % self.config.log_every:  # clocks differ, and to agree costs a collective
            return False
        return any_rank(time.monotonic() - self.saved_time >= 60 * self.config.checkpoint_minutes, self.dist_info)

    def _is_kept(self) -> bool:
        """Return whether the checkpoint of this step is one to keep for good."""
        every = self.config.keep_every * self.loader.batches_per_epoch
        return every > 0 and self.step % every == 0

    def _is_best(self, log: RunLog | None) -> bool:
        """Validate, log the scores, and return whether no checkpoint before had a higher mean PSNR."""
        if self.validate is None or self.saved_at == self.step:
            return False
        self._flush()
        scores = dict(self.validate(self.training.ema or self.model))
        psnr = sum(scores.values()) / len(scores)
        if log is not None:
            log.write({"step": self.step, "validation": {"psnr": psnr, **scores}})
        is_best, best = psnr > self.best, self.best
        self.best = max(self.best, psnr)
        said = "the best so far" if is_best else f"the best was {best:.2f}"
        by_task = ", ".join(f"{task} {score:.2f}" for task, score in scores.items())
        _log.info("step %d/%d · validation %.2f dB (%s) · %s", self.step, self.total, psnr, by_task, said)
        return is_best

    def _save(self, is_best: bool = False, alone: bool = False) -> str | None:
        """Write a checkpoint of this step. Returns the reason why there is none, the same on all ranks up to words."""
        if alone and self.config.zero:
            return "with zero=true the other ranks hold parts of it"
        self._begin_save(is_best, alone, last=True)
        reason = self.writer.wait()
        failed = reason is not None if alone else any_rank(reason is not None, self.dist_info)
        if failed:
            self.saved_at = -1
            return reason or "rank 0 could not write it"
        return None

    def _begin_save(self, is_best: bool = False, alone: bool = False, last: bool = False) -> None:
        """Copy the state of this step to host memory, and let it be written while training goes on.

        Args:
            is_best: keep it as the best one, too.
            alone: the other ranks do not call; their random number generators start as this one's, then.
            last: somebody waits for it; otherwise a failure is logged, and costs this checkpoint alone.
        """
        self._flush()
        if self.saved_at == self.step:
            return
        own = generator_states(self.dist_info.device)
        rng: list[Any] = [own] * self.dist_info.world_size
        if self.dist_info.world_size > 1 and not alone:
            dist.all_gather_object(rng, own)
        self.generators = own
        self.saved_at, self.saved_time = self.step, time.monotonic()
        if self.config.zero:
            self.training.optimizer.consolidate_state_dict()  # type: ignore[union-attr]
        if not self.dist_info.is_main:
            return
        step = self.step
        paths = [self.out / LATEST]
        if self._is_kept():
            paths.append(self.out / f"checkpoint_epoch{self.epoch:04}.pt")

        def write(state: dict[str, Any]) -> str | None:
            for path in paths:
                try:
                    save_checkpoint(path, state)
                    if is_best and path.name == LATEST:
                        keep_best(path)
                except (OSError, RuntimeError) as error:
                    if not last:
                        _log.warning("no checkpoint at step %d: %s; training goes on, and tries again", step, error)
                    return f"{path}: {error}"
            return None

        state = {
            "config": self.config.to_dict(),
            **self.training.state_dict(),
            "schedule": {"step": self.step, "total": self.total},
            "rng": rng,
            "loader": self.loader.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "best": self.best,
        }
        with self.watch.range("checkpoint"):
            self.writer.start(state, write)

    def _write_config(self) -> None:
        """Write ``config.json``: the settings of the run, and what they came to on this machine."""
        device = self.dist_info.device
        run = {
            "precision": self.training.precision,
            "recompute": self.training.recompute,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "ranks": self.dist_info.world_size,
            "torch": torch.__version__,
            "loader": self.loader.description,
            "steps_per_epoch": self.loader.batches_per_epoch,
            "total_steps": self.total,
        }
        with atomic_write(self.out / "config.json", "w") as file:
            file.write(json.dumps({"config": self.config.to_dict(), "run": run}, indent=2) + "\n")
