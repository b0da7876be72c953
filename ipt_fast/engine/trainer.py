"""The training loop: batches in, steps, log lines and checkpoints out; callable in-process."""

import json
import signal as signals
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from rich.console import Console

from ipt_fast.checkpoint import (
    LATEST,
    generator_states,
    load_training_state,
    newest_good,
    restore_state,
    save_checkpoint,
)
from ipt_fast.engine.config import ConfigError, TrainConfig
from ipt_fast.engine.distributed import DistInfo, broadcast_parameters
from ipt_fast.engine.meter import DeviceTimer, Meter
from ipt_fast.engine.progress import TrainingProgress
from ipt_fast.engine.run_log import RunLog
from ipt_fast.engine.schedule import learning_rate, total_steps
from ipt_fast.engine.step import Degrade, StepOutcome, TrainStep
from ipt_fast.engine.stop import StopRequest
from ipt_fast.engine.tracing import tracer
from ipt_fast.io.atomic import atomic_write
from ipt_fast.model import IPT


class Loader(Protocol):
    """What the trainer needs of a loader (``ipt_fast.data.CropLoader``)."""

    batches_per_epoch: int

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class DivergedError(RuntimeError):
    """Several steps in a row had a loss or gradient that is not finite."""


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
        """The run has come to its last step."""
        return self.step >= self.total_steps


class Trainer:
    """Trains a network and leaves checkpoint, config.json, log.jsonl and a TensorBoard log in a folder.

    Args:
        config: see ``TrainConfig``.
        loader: this rank's part of the batches.
        out: folder of the run; made if absent.
        world: this rank; by default one process, on the GPU if there is one.
        model: the network to train; by default one drawn anew from ``config.seed``.
        degrade: crops to (input, target); by default ``ipt_fast.ops.degrade``.
        console: where lines and the bar go; by default stderr.
        profile_steps: write a trace of that many steps, for Perfetto (https://ui.perfetto.dev).

    Raises:
        ConfigError: settings that cannot be trained with, before anything is written.
    """

    def __init__(
        self,
        config: TrainConfig,
        loader: Loader,
        out: str | Path,
        *,
        world: DistInfo | None = None,
        model: IPT | None = None,
        degrade: Degrade | None = None,
        console: Console | None = None,
        profile_steps: int = 0,
    ):
        self.config, self.loader, self.out = config, loader, Path(out)
        self.world = world or DistInfo(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        check_batch(config, self.world.size)
        if model is None:
            torch.manual_seed(config.seed)
            model = IPT(config.model)
        model = model.to(self.world.device).train()
        broadcast_parameters(model, self.world.size)
        self.training = TrainStep(model, config, self.world, degrade or _degrade())
        self.total = total_steps(config, loader.batches_per_epoch)
        self.step = 0
        self.saved_at = -1
        self.stopping = False
        self.meter = Meter(self.world.device)
        self.last: dict[str, Any] = {}
        self.profile_steps = profile_steps
        self.pending: tuple[StepOutcome, str, DeviceTimer] | None = None
        self.bad_in_a_row = 0
        self.progress = TrainingProgress(
            console or Console(stderr=True), config.preset, self.total, config.lam, quiet=not self.world.main
        )

    @property
    def model(self) -> IPT:
        """The network being trained."""
        return self.training.model

    @property
    def epoch(self) -> int:
        """Epoch of the next step, from 0."""
        return self.step // self.loader.batches_per_epoch

    def resume(self, choice: str | Path) -> bool:
        """Go on from a checkpoint: a path, or "auto" for the newest good one in ``out``. False where there is none.

        Raises:
            FileNotFoundError, CheckpointError: it cannot be read, or is of another network; nothing is loaded then.
        """
        if choice == "auto":
            found = newest_good(self.out)
            if found is None:
                return False
            path, state = found
        else:
            path, state = Path(choice), load_training_state(choice)
        restore_state(
            str(path),
            state,
            model=self.training.model,
            ema=self.training.ema,
            optimizer=self.training.optimizer,
            scaler=self.training.scale,
            loader=self.loader,
            config=self.config.to_dict(),
            device=self.world.device,
            rank=self.world.rank,
        )
        self.step = int(state["step"])
        self.saved_at = self.step if path.parent == self.out else -1
        self.progress.say(f"goes on from {path} at step {self.step} of {self.total}")
        return True

    def train(self) -> Summary:
        """Train to the last step, or until SIGTERM or Ctrl-C; a checkpoint is written in both cases.

        Raises:
            DivergedError: ``max_bad_steps`` steps in a row were not finite.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        log = None
        if self.world.main:
            log = RunLog(self.out, self.step, self.progress.say)
            self._write_config()
        self.meter = Meter(self.world.device)
        trace = tracer(self.profile_steps, self.out, self.world.rank, self.progress.say)
        batches = iter(self.loader)
        try:
            with StopRequest() as request, self.progress, trace or nullcontext():
                while self.step < self.total and not self.stopping:
                    self._one_step(batches, request)
                    if trace:
                        trace.step()
                    self.progress.step(self.step, self.epoch)
                    if self.step % self.config.log_every == 0 or self.meter.all_batches == 1:
                        self._log(log)
                    if self.step % self.config.checkpoint_every == 0 and self.step < self.total:
                        self._save()
                    self._stop_if_diverged()
                self._flush()
                self._stop_if_diverged()
                if self.meter.batches:
                    self._log(log)
                self._save()
                self._say_the_end(request.signal)
        finally:
            self.loader.close()
            if log is not None:
                log.close()
        return self._summary(request.signal)

    def _one_step(self, batches: Iterator[Any], request: StopRequest) -> None:
        started = time.perf_counter()
        batch = next(batches)
        self.meter.batch(time.perf_counter() - started, len(batch.gt) * self.world.size)
        with DeviceTimer(self.world.device) as timer:
            x, target = self.training.prepare(batch)
        rate = learning_rate(self.config, self.step, self.total)
        outcome = self.training(x, target, batch.task, rate, stop=request.signal is not None)
        self.step += 1
        self._flush()  # the step before: the device works on this one meanwhile
        self.pending = (outcome, batch.task, timer)

    def _flush(self) -> None:
        """Take in the numbers of the last step. They are the same on all ranks, and so is what follows from them."""
        if self.pending is None:
            return
        outcome, task, timer = self.pending
        self.pending = None
        result = outcome.read()
        self.meter.result(result, task, timer.seconds())
        self.stopping |= result.stop
        self.bad_in_a_row = self.bad_in_a_row + 1 if result.skipped and not result.rescaled else 0
        if self.bad_in_a_row == 1:
            self.progress.say(
                f"WARNING: step skipped near {self.step}: loss {result.total:g}, gradient norm {result.grad_norm:g}, "
                f"task {task}"
            )

    def _stop_if_diverged(self) -> None:
        if self.bad_in_a_row < self.config.max_bad_steps:
            return
        self._save()
        raise DivergedError(
            f"{self.bad_in_a_row} steps in a row before step {self.step} had a loss or gradient that is not finite; "
            f"their updates were left out and the weights of {self.out / LATEST} are finite. Usual causes: a learning "
            f"rate too high (lr={self.config.lr:g}: lower it, or set clip_grad=1), or weights that have grown too "
            "large for half precision (--precision fp32 tells)"
        )

    def _log(self, log: RunLog | None) -> None:
        self._flush()
        stats = self.loader.stats()
        self.last = {
            "step": self.step,
            "epoch": self.epoch,
            "time": time.time(),
            "lr": learning_rate(self.config, self.step - 1, self.total),
            **self.meter.record(),
            "decode_ms": stats.get("decode_ms"),
            "bad_files": stats.get("bad_files", 0),
            "eta_s": self.meter.seconds_left(self.total - self.step),
        }
        if log is not None:
            log.write(self.last)
            self.progress.update(self.last)

    def _save(self) -> None:
        """Write a checkpoint; where that fails, say so and go on: the last good one is still there."""
        self._flush()
        if self.saved_at == self.step:
            return
        self.saved_at = self.step
        state = self._state()
        if not self.world.main:
            return
        paths = [self.out / LATEST]
        if self.config.keep_every and self.step % (self.config.keep_every * self.loader.batches_per_epoch) == 0:
            paths.append(self.out / f"checkpoint_epoch{self.epoch:04}.pt")
        for path in paths:
            try:
                save_checkpoint(path, state)
            except (OSError, RuntimeError) as error:
                self.progress.say(
                    f"WARNING: no checkpoint at step {self.step}: {path}: {error}; training goes on, and tries again "
                    f"in {self.config.checkpoint_every} steps"
                )

    def _state(self) -> dict[str, Any]:
        own = generator_states(self.world.device)
        rng: list[Any] = [own] * self.world.size
        if self.world.size > 1:
            dist.all_gather_object(rng, own)
        training = self.training
        return {
            "config": self.config.to_dict(),
            "model": training.model.state_dict(),
            "ema": None if training.ema is None else training.ema.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "scaler": training.scale.state_dict(),
            "schedule": {"step": self.step, "total": self.total},
            "rng": rng,
            "loader": self.loader.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
        }

    def _write_config(self) -> None:
        device = self.world.device
        run = {
            "precision": self.training.precision,
            "recompute": self.training.recompute,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "ranks": self.world.size,
            "torch": torch.__version__,
            "loader": getattr(self.loader, "about", type(self.loader).__name__),
            "steps_per_epoch": self.loader.batches_per_epoch,
            "total_steps": self.total,
        }
        text = json.dumps({"config": self.config.to_dict(), "run": run}, indent=2)
        with atomic_write(self.out / "config.json", "w") as file:
            file.write(text + "\n")

    def _say_the_end(self, signal: int | None) -> None:
        if self.step < self.total:
            name = signals.Signals(signal).name if signal else "another rank"
            self.progress.say(f"stopped by {name} after step {self.step} of {self.total}; --resume auto goes on")

    def _summary(self, signal: int | None) -> Summary:
        whole = self.meter.whole_run()
        return Summary(
            step=self.step,
            total_steps=self.total,
            epoch=self.epoch,
            **{key: self.last.get(key, float("nan")) for key in ("loss", "l1", "contrastive")},
            skipped=self.meter.skipped,
            signal=(signal or signals.SIGTERM) if self.step < self.total else None,
            checkpoint=self.out / LATEST,
            **whole,
        )


def _degrade() -> Degrade:
    from ipt_fast.ops import degrade

    return degrade


def check_batch(config: TrainConfig, ranks: int) -> None:
    """The batch can be split over the ranks, and leaves each image others to be told apart from.

    Raises:
        ConfigError: it cannot, or does not.
    """
    if config.batch_size % ranks:
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide by {ranks} ranks; choose a multiple of {ranks}"
        )
    images = config.batch_size if config.contrastive_scope == "global" else config.batch_size // ranks
    if config.lam and images < 2:
        raise ConfigError(
            f"the contrastive loss compares images of a batch and needs at least 2, got {images} "
            f"(batch_size={config.batch_size} over {ranks} ranks, contrastive_scope={config.contrastive_scope}); "
            "choose a larger batch_size, or lam=0 to leave the loss out"
        )
