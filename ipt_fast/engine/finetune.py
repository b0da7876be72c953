"""Fine-tuning: one head, one tail and one task embedding of a network are kept, and trained on one task."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ipt_fast.engine.config import TrainConfig
from ipt_fast.model import IPT, IPTConfig
from ipt_fast.tasks import get_task

_PER_TASK = ("head.", "tail.")
_EMBEDDING = "body.query_embed.weight"


def nearest_task(task: str, tasks: tuple[str, ...]) -> str:
    """The task of a network whose head is the best start for another task: the same one, otherwise one of the same
    kind, otherwise one of the same scale; among those the one with the nearest noise level.

    ``denoise70`` starts from ``denoise50``, ``denoise10`` from ``denoise30``, ``deblur`` from ``derain``.
    """
    wanted = get_task(task)

    def distance(name: str) -> tuple:
        other = get_task(name)
        return (
            name != task,
            other.kind != wanted.kind,
            abs(other.scale - wanted.scale),
            abs(other.sigma - wanted.sigma),
            tasks.index(name),
        )

    return min(tasks, key=distance)


def keep_one_task(model: IPT, task: str) -> tuple[IPT, str]:
    """A network for ``task`` alone with the weights of ``model``, and the name of the task whose parts it took.

    Head, body, embedding and tail are copied. A tail of another scale does not fit: that one is drawn anew.
    """
    source = nearest_task(task, model.config.tasks)
    index = model.task_index(source)
    own = IPT(replace(model.config, tasks=(task,)))
    fresh = own.state_dict()
    kept: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key == _EMBEDDING:
            kept[key] = value[index : index + 1]
        elif not key.startswith(_PER_TASK):
            kept[key] = value
        elif key.split(".")[1] == str(index):
            part, _, rest = key.split(".", 2)
            kept[f"{part}.0.{rest}"] = value
    if get_task(source).scale != get_task(task).scale:
        kept = {key: fresh[key] if key.startswith("tail.") else value for key, value in kept.items()}
        kept |= {key: value for key, value in fresh.items() if key.startswith("tail.")}
        kept = {key: value for key, value in kept.items() if key in fresh}
    own.load_state_dict(kept)
    return own, source


def finetune_recipe(network: IPTConfig, task: str) -> TrainConfig:
    """The paper's fine-tuning: 30 epochs at 2e-5, the supervised loss alone; flips and rotations for super-resolution
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
