"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

import math

from ipt_fast.engine.config import TrainConfig


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Length of the run in steps."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, round(config.epochs * steps_per_epoch))


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """The learning rate of the step with that number, counted from 0, in a run of ``total`` steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "step":
        return config.lr if step < round(config.lr_drop_at * total) else config.lr_final
    if config.schedule == "cosine":
        # The last step is at lr_final.
        done = (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps)
        return config.lr_final + (config.lr - config.lr_final) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.lr
