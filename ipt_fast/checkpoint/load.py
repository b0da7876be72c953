"""A network out of a file, the released ones, single-task ones and our own, and one task out of a network.

Every size is read off the weights.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.checkpoint.errors import CheckpointError
from ipt_fast.checkpoint.locate import located
from ipt_fast.checkpoint.read import check_weights, read_weights
from ipt_fast.model import IPT, IPTConfig
from ipt_fast.model.ipt import MeanShift
from ipt_fast.tasks import TASKS, get_task

_ENCODER = "body.encoder.layers.0"
_POSITION = "body.position_encoding.pe.weight"
_EMBEDDING = "body.query_embed.weight"
# Of the released networks (features, tokens, layers); the weights themselves do not say heads and patch.
_RELEASED = (64, 576, 12)
RELEASED_HEADS = 12
_RELEASED_PATCH = 48


@checked(num_heads=1)
def load_checkpoint(path: str | Path, task: str | None = None, *, num_heads: int | None = None) -> IPT:
    """Load the network of a file, in evaluation mode on the CPU, float32.

    Reads the released files (``IPT_pretrain.pt``, ``IPT_sr2.pt``, ...), other torch.save files with their keys (bare,
    or under ``params``, ``params_ema``, ``state_dict``, ``model``; with or without ``module.`` or ``model.`` before
    each key), this project's checkpoints, and safetensors, also on the Hub (``hf://owner/name``). No code is run.

    Args:
        path: the file; "pretrained" for the network that comes with the package.
        task: keep this task alone. Where a file with one task does not say which it is, this is its name; without
            it, it is taken from the tail's scale or the file's name.
        num_heads: attention heads, for files that do not say it: foreign ones of other sizes than the released.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, foreign, unsafe to load, or weights that do not fit together; one line that names
            the file, the first keys that do not fit and what was expected.
        ValueError: the file has no such task, or says another number of heads.
    """
    if task is not None:
        get_task(task)
    path = located(path)
    weights, stated = read_weights(path)
    if stated is None:
        try:
            config = _config_from_weights(path, weights, task, num_heads)
        except KeyError as error:
            raise CheckpointError(f"{path}: incomplete weights of an IPT, without {error.args[0]}") from error
    else:
        try:
            config = IPTConfig.from_dict(stated)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: its configuration does not fit this version: {error}") from error
        if num_heads not in (None, config.num_heads):
            raise ValueError(f"{path}: says that its network has {config.num_heads} attention heads, not {num_heads}")
    if task is not None and len(config.tasks) > 1:
        if task not in config.tasks:
            raise ValueError(f"{path}: has no task {task}; it has {', '.join(config.tasks)}")
        weights = _task_weights(weights, config.tasks.index(task))
        config = replace(config, tasks=(task,))
    elif task is not None and config.tasks != (task,):
        raise ValueError(f"{path}: has the task {config.tasks[0]}, not {task}")
    with torch.device("meta"):
        model = IPT(config)
    expected = model.state_dict()
    check_weights(path, weights, expected, "does not fit an IPT")
    # Copies, so that a network from a float16 file is float32, and none shares its memory with the file's.
    own = {key: value.to(expected[key].dtype, copy=True) for key, value in weights.items()}
    model.load_state_dict(own, assign=True)
    for part, sign in ((model.sub_mean, -1), (model.add_mean, 1)):
        exact = MeanShift(sign)
        if torch.allclose(part.bias, exact.bias, rtol=1e-2) and torch.allclose(part.weight, exact.weight, atol=1e-2):
            # A constant, which a half-precision file holds rounded by up to 0.06 levels.
            part.load_state_dict(exact.state_dict())
        part.requires_grad_(False)
    return model.eval()


def _config_from_weights(path: Path, weights: dict[str, Tensor], task: str | None, num_heads: int | None) -> IPTConfig:
    """Read every size of the network off the shapes. Raises KeyError where a weight is missing that all have."""
    n_feats = weights["head.0.0.weight"].shape[0]
    D = weights[f"{_ENCODER}.self_attn.in_proj_weight"].shape[-1]
    patch_dim = math.isqrt(D // n_feats) if n_feats else 0
    if not n_feats or n_feats * patch_dim**2 != D:
        raise CheckpointError(f"{path}: tokens of {D} values do not go with {n_feats} features of an IPT")
    if _POSITION in weights:
        num_tokens = weights[_POSITION].shape[0]
    elif _EMBEDDING in weights:
        num_tokens = weights[_EMBEDDING].shape[-1] // D
    else:
        num_tokens = (_RELEASED_PATCH // patch_dim) ** 2
    num_layers = len({key.split(".")[3] for key in weights if key.startswith("body.encoder.layers.")})
    if num_heads is None and (n_feats, D, num_layers) != _RELEASED:
        raise CheckpointError(
            f"{path}: does not say how many attention heads the network has; give num_heads (ipt-fast convert "
            "--num-heads N writes a file that says it)"
        )
    num_heads = RELEASED_HEADS if num_heads is None else num_heads
    if num_heads < 1 or D % num_heads:
        raise CheckpointError(f"{path}: {num_heads} attention heads do not divide {D}; give num_heads")
    return IPTConfig(
        n_feats=n_feats,
        patch_size=math.isqrt(num_tokens) * patch_dim,
        patch_dim=patch_dim,
        num_heads=num_heads,
        num_layers=num_layers,
        tasks=_tasks(path, weights, n_feats, task),
        ffn_ratio=weights[f"{_ENCODER}.linear1.weight"].shape[0] // D,
        position_embed=_POSITION in weights,
        task_embed=_EMBEDDING in weights,
        mlp="body.linear_encoding.weight" in weights,
        memory_norm="body.decoder.memory_norm.weight" in weights,
    )


def _tasks(path: Path, weights: dict[str, Tensor], n_feats: int, task: str | None) -> tuple[str, ...]:
    """Name the tasks, from the scales of the tails; a single task also from the file's name."""
    count = len({key.split(".")[1] for key in weights if key.startswith("head.")})
    scales = tuple(_scale(weights, index, n_feats) for index in range(count))
    if count == 1:
        name = task or _named_in(path, scales[0])
        if get_task(name).scale != scales[0]:
            raise ValueError(f"{path}: its tail enlarges {scales[0]} times, so it is not for {name}")
        return (name,)
    if scales != tuple(get_task(name).scale for name in TASKS):
        raise CheckpointError(
            f"{path}: {count} tails that enlarge {', '.join(map(str, scales))} times; "
            f"expected were one, or the six of {', '.join(TASKS)}"
        )
    return TASKS


def _scale(weights: dict[str, Tensor], index: int, n_feats: int) -> int:
    """Return how much tail ``index`` enlarges: the product over its convolutions with a PixelShuffle behind."""
    scale, stage = 1, 0
    while (weight := weights.get(f"tail.{index}.0.{stage}.weight")) is not None:
        scale *= math.isqrt(weight.shape[0] // n_feats)
        stage += 2
    return scale


def _named_in(path: Path, scale: int) -> str:
    if scale in (2, 3, 4):
        return f"sr{scale}"
    text = path.stem.lower()
    if scale == 1 and (match := re.search(r"noise[_-]?(\d+)", text)):
        return f"denoise{match[1]}"
    if scale == 1 and (match := re.search(r"derain|deblur", text)):
        return match[0]
    raise CheckpointError(
        f"{path}: holds one task, and neither its tail nor its name says which; give the task (derain, denoise30, ...)"
    )


@checked
def nearest_task(task: str, tasks: tuple[str, ...]) -> str:
    """Return the task of a network whose head is the best start for another task.

    The same one, otherwise one of the same kind, otherwise one of the same scale; among those the one with the nearest
    noise level: ``denoise70`` starts from ``denoise50``, ``denoise10`` from ``denoise30``, ``deblur`` from ``derain``.
    """
    wanted = get_task(task)
    if not tasks:
        raise ValueError("nearest_task: tasks must name at least one")

    def distance(name: str) -> tuple:
        other = get_task(name)
        far = abs(other.scale - wanted.scale), abs(other.sigma - wanted.sigma)
        return name != task, other.kind != wanted.kind, *far

    return min(tasks, key=distance)


def _task_weights(weights: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Keep the body and the head, tail and embedding of task ``index``, which becomes task 0; nothing is copied."""
    kept = {}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        if part in ("head", "tail"):
            number, _, rest = rest.partition(".")
            if number == str(index):
                kept[f"{part}.0.{rest}"] = value
        else:
            kept[key] = value[index : index + 1] if key == _EMBEDDING else value
    return kept


@checked
def keep_one_task(model: IPT, task: str) -> tuple[IPT, str]:
    """Return a network for ``task`` alone with the weights of ``model``, and the name of the task whose parts it took.

    Head, body, embedding and tail are copied. A tail of another scale does not fit: that one is initialised anew.
    """
    source = nearest_task(task, model.config.tasks)
    with torch.random.fork_rng(devices=[]):  # the caller's generator is his
        own = IPT(replace(model.config, tasks=(task,)))
    kept = _task_weights(model.state_dict(), model.task_index(source))
    if get_task(source).scale != get_task(task).scale:
        kept = {key: value for key, value in kept.items() if not key.startswith("tail.")}
        kept |= {key: value for key, value in own.state_dict().items() if key.startswith("tail.")}
    own.load_state_dict(kept)
    return own, source
