"""The recipes of the presets and of fine-tuning, and how ``--set`` changes them."""

import difflib
import types
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ipt_fast.engine.config import ConfigError, TrainConfig
from ipt_fast.model import PRESETS, IPTConfig, preset
from ipt_fast.tasks import get_task

# What differs from the defaults of ``TrainConfig``.
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "epochs": None, "steps": 2000, "batch_size": 8, "lr": 1e-3, "lr_final": 1e-5, "schedule": "cosine",
        "warmup_steps": 100, "clip_grad": 1.0, "crops_per_image": 2, "checkpoint_every": 250,
    },
    "small": {
        "epochs": None, "steps": 100_000, "batch_size": 128, "lr": 3e-4, "lr_final": 1e-6, "schedule": "cosine",
        "warmup_steps": 1000, "clip_grad": 1.0,
    },
    "base": {},
    "deblur": {"batch_size": 32},
}  # fmt: skip


def recipe(name: str, changes: Sequence[str] = ()) -> TrainConfig:
    """Return the recipe of a preset, with ``--set`` changes applied.

    Raises:
        ConfigError: no such preset, no such key, or a value that the key cannot have.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
    return apply_changes(TrainConfig(preset=name, model=preset(name), **RECIPES[name]), changes)


def finetune_recipe(network: IPTConfig, task: str) -> TrainConfig:
    """Return the paper's fine-tuning of a network on one task.

    30 epochs at 2e-5, the supervised loss alone; flips and rotations for super-resolution and deraining.
    """
    return TrainConfig(
        preset=f"finetune {task}",
        model=replace(network, tasks=(task,)),
        epochs=30,
        lr=2e-5,
        lr_final=2e-5,
        schedule="constant",
        lam=0.0,
        augment=get_task(task).kind in ("sr", "derain"),
    )


def apply_changes(config: TrainConfig, changes: Sequence[str]) -> TrainConfig:
    """Return ``config`` with changes such as ``lr=1e-4``, ``model.num_layers=4`` or ``model.tasks=sr2,derain``.

    Setting ``steps`` clears ``epochs`` and the other way round.
    """
    kinds = get_type_hints(TrainConfig) | {f"model.{key}": kind for key, kind in get_type_hints(IPTConfig).items()}
    del kinds["model"], kinds["preset"]
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"--set {change!r}: write it as KEY=VALUE")
        if key not in kinds:
            full = {name.removeprefix("model."): name for name in kinds}  # "num_layers" means "model.num_layers"
            near = [full[name] for name in difflib.get_close_matches(key.removeprefix("model."), full)]
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(kinds)}"
            raise ConfigError(f"--set {key}: no such setting; {hint}")
        values[key] = _parse(key, text.strip(), kinds[key])
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if values.get(key) is not None:
            values.setdefault(other, None)
    model = {key[6:]: values.pop(key) for key in list(values) if key.startswith("model.")}
    try:
        return replace(config, **values, model=replace(config.model, **model))
    except ValueError as error:
        raise ConfigError(f"--set {' '.join(changes)}: {error}") from error


_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _parse(key: str, text: str, kind: Any) -> Any:
    """Return ``text`` as a value of the annotated type ``kind``."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _parse(key, text, next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        if text not in args:
            raise ConfigError(f"--set {key}={text}: must be one of {', '.join(args)}")
        return text
    if origin is tuple:
        return tuple(_parse(key, part.strip(), args[0]) for part in text.strip("()[]").split(",") if part.strip())
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ConfigError(f"--set {key}={text}: must be true or false")
        return _BOOLS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"--set {key}={text}: must be {expected}") from error
