"""Fine-tuning: one head, one tail and one task embedding of a network are kept, and trained on one task."""

from dataclasses import replace
from typing import Any

from ipt_fast.engine.config import TrainConfig
from ipt_fast.model import IPTConfig
from ipt_fast.tasks import get_task


def finetune_recipe(network: IPTConfig, task: str) -> TrainConfig:
    """Return the paper's recipe: 30 epochs at 2e-5, the supervised loss alone; flips and rotations for super-resolution
    and deraining."""
    settings: dict[str, Any] = {
        "preset": f"finetune {task}",
        "model": replace(network, tasks=(task,)),
        "epochs": 30,
        "lr": 2e-5,
        "lr_final": 2e-5,
        "schedule": "constant",
        "lam": 0.0,
        "augment": get_task(task).kind in ("sr", "derain"),
    }
    return TrainConfig(**settings)
