"""Settings that do not go together: refused where one would have no effect, warned of where a run would disappoint."""

import logging
from collections.abc import Collection, Iterable

from ipt_fast.arguments import checked
from ipt_fast.engine.config import ConfigError, TrainConfig, learning_rate
from ipt_fast.tasks import get_task

_log = logging.getLogger(__name__)


@checked(ranks=1)
def check(config: TrainConfig, ranks: int = 1, *, pairs: bool | None = None, given: Collection[str] = ()) -> None:
    """Refuse settings that cannot be trained with, or that would have no effect beside the others.

    Args:
        config: the settings; each by itself has been checked by its constructor.
        ranks: number of processes that the batch is split over.
        pairs: the loader brings pairs of photos (True) or clean photos alone (False); None where that is not known.
        given: names of settings that somebody asked for, also where they equal the default.

    Raises:
        ConfigError: what does not go together, and what to do.
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
    for task in map(get_task, config.model.tasks):
        if task.kind == "deblur" and pairs is False:
            raise ConfigError(
                f"task {task.name}: there is no synthetic blur; fine-tune it on pairs of photos "
                f"(--finetune {task.name} --init FILE --pairs GT LQ)"
            )
    asked = config.changed() - {"lr_final", "checkpoint_every"} | set(given)  # recipes set these two
    for name, is_ignored, reason in _ignored(config, ranks, pairs):
        if is_ignored and name in asked:
            raise ConfigError(f"{name}={getattr(config, name)} {reason}")


def _ignored(config: TrainConfig, ranks: int, pairs: bool | None) -> Iterable[tuple[str, bool | None, str]]:
    """Yield settings, whether they would have no effect beside the others, and why."""
    tasks = ", ".join(config.model.tasks)
    derains = any(get_task(task).kind == "derain" for task in config.model.tasks)
    loss = "is a setting of the contrastive loss, which lam=0 leaves out; leave it out, or set lam (0.1 in the paper)"
    yield "contrastive", config.lam == 0, loss
    yield "contrastive_scope", config.lam == 0, loss
    yield "rain", pairs, "needs clean photos, and --pairs bring their own rain; leave it out"
    yield "rain", not derains, f"is of the task derain, and this run has {tasks}; add derain, or leave it out"
    served = "does not serve pairs, which are read by the torch loader alone; leave it out"
    yield "loader", pairs and config.loader == "dali", served
    schedule = f"is of schedule=step; leave it out with schedule={config.schedule}"
    yield "lr_drop_at", config.schedule != "step", schedule
    never = f"is never reached with schedule=constant, which stays at lr={config.lr:g}; leave it out, or choose "
    yield "lr_final", config.schedule == "constant" and config.lr_final != config.lr, never + "schedule=step or cosine"
    yield "prefetch", config.workers == 0, "needs workers to make batches ahead; leave it out, or set workers"
    several = "needs several ranks, and this run has one; leave it out, or start it with torchrun"
    yield "allreduce", ranks == 1, several
    yield "zero", ranks == 1, several
    yield "zero", config.optimizer == "apex", "splits torch's Adam; leave it out with optimizer=apex"
    timed = f"has no effect beside checkpoint_minutes={config.checkpoint_minutes:g}; give one of the two"
    yield "checkpoint_every", config.checkpoint_minutes > 0, timed
    threads = "has no threads left to decode with loader=dali; set 1 or more, or choose loader=torch"
    yield "workers", config.workers == 0 and config.loader == "dali", threads


@checked(total=1, steps_per_epoch=1)
def warn(config: TrainConfig, total: int, steps_per_epoch: int, given: Collection[str] | None = None) -> None:
    """Warn of settings that contradict the length of the run, ``total`` steps, or one another.

    Of those that nobody asked for (``given``; None: all that differ from the defaults) only where the weights suffer.
    """
    asked = config.changed() if given is None else set(given)
    for name, contradicts, reason in _contradicting(config, total, steps_per_epoch):
        if contradicts and (name in asked or name in ("warmup_steps", "lr_final", "ema")):
            _log.warning("%s=%s %s", name, getattr(config, name), reason)


def _contradicting(config: TrainConfig, total: int, steps_per_epoch: int) -> Iterable[tuple[str, bool, str]]:
    """Yield settings, whether others contradict them, and how."""
    lr, warmup, ends = config.lr, config.warmup_steps, learning_rate(config, total - 1, total)
    drop = round(config.lr_drop_at * total) if config.schedule == "step" and lr != config.lr_final else 0
    length, left = f"the {total} steps of the run", config.ema**total
    endless = f"does not end within {length}: the learning rate ends at {ends:.3g}, and lr, lr_final and schedule have "
    yield "warmup_steps", warmup >= total, f"{endless}no effect beyond that; set warmup_steps below {total}, or 0"
    never = f"ends after the drop to lr_final at step {drop}: the run never trains at lr={lr:g}; set it below {drop}"
    yield "warmup_steps", 0 < drop <= warmup < total, never
    yield "lr_final", drop >= total, f"is never reached: lr_drop_at={config.lr_drop_at:g} is the end"
    rises = f"is above lr={lr:g}: the learning rate rises; set it below, or schedule=constant"
    yield "lr_final", config.schedule != "constant" and config.lr_final > lr, rises
    only = f"is more than {length}: the only checkpoint is its last, and a killed run loses all"
    yield "checkpoint_every", config.checkpoint_every > total and not config.checkpoint_minutes, only
    yield "log_every", config.log_every > total, f"is more than {length}"
    kept = f"epochs are more than the run's {total / steps_per_epoch:.3g}: no checkpoint is kept for good"
    yield "keep_every", config.keep_every * steps_per_epoch > total, kept
    untrained = f"leaves {left:.0%} of the untrained weights in the average, which is what is used after {length}"
    yield "ema", left > 0.1, f"{untrained}; set ema below {0.01 ** (1 / total):.4g}, or 0"
