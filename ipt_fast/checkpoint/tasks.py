"""One task out of a network of several."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ipt_fast.model import IPT
from ipt_fast.tasks import get_task

EMBEDDING = "body.query_embed.weight"


def nearest_task(task: str, tasks: tuple[str, ...]) -> str:
    """Return the task of a network whose head is the best start for another task.

    The same one, otherwise one of the same kind, otherwise one of the same scale; among those the one with the nearest
    noise level: ``denoise70`` starts from ``denoise50``, ``denoise10`` from ``denoise30``, ``deblur`` from ``derain``.
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


def task_weights(weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Keep the body and the head, tail and embedding of task ``index``, which becomes task 0; nothing is copied."""
    kept = {}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        if part in ("head", "tail"):
            number, _, rest = rest.partition(".")
            if number == str(index):
                kept[f"{part}.0.{rest}"] = value
        else:
            kept[key] = value[index : index + 1] if key == EMBEDDING else value
    return kept


def keep_one_task(model: IPT, task: str) -> tuple[IPT, str]:
    """Return a network for ``task`` alone with the weights of ``model``, and the name of the task whose parts it took.

    Head, body, embedding and tail are copied. A tail of another scale does not fit: that one is initialised anew.
    """
    source = nearest_task(task, model.config.tasks)
    own = IPT(replace(model.config, tasks=(task,)))
    kept = task_weights(model.state_dict(), model.task_index(source))
    if get_task(source).scale != get_task(task).scale:
        kept = {key: value for key, value in kept.items() if not key.startswith("tail.")}
        kept |= {key: value for key, value in own.state_dict().items() if key.startswith("tail.")}
    own.load_state_dict(kept)
    return own, source
