"""A recipe as a YAML file, and the JSON schema by which an editor completes and checks one."""

import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ipt_fast.engine.config import ConfigError, TrainConfig, recipe
from ipt_fast.model import PRESETS, IPTConfig


def write_recipe(config: TrainConfig, network: bool = True) -> str:
    """Return the YAML of all settings; ``network=False`` leaves the network out, as for fine-tuning."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("steps", "epochs")}
    length = {"epochs": config.epochs} if config.steps is None else {"steps": config.steps}
    model = values.pop("model")
    name = values.pop("preset")
    values = {"preset": name, **length, **values, "model": model} if network else {**length, **values}
    return yaml.safe_dump(values, sort_keys=False, width=120, default_flow_style=None)


def read_changes(path: Path) -> tuple[str | None, list[str]]:
    """Return the preset that a file names, if any, and its settings as ``--set`` takes them.

    Raises:
        ConfigError: no mapping of settings, a preset that does not exist, an unknown key, with the nearest name, or a
            value that the key cannot have.
        OSError: the file cannot be read.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a YAML file ({reason})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: needs settings, a line each, as in lr: 1e-4 (got {type(values).__name__})")
    name = values.pop("preset", None)
    if name is not None and name not in PRESETS:
        raise ConfigError(f"{path}: preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
    model = values.pop("model", None) or {}
    if not isinstance(model, dict):
        raise ConfigError(f"{path}: model needs settings of its own, a line each, as in num_layers: 6 (got {model!r})")
    flat = {str(key): value for key, value in values.items()} | {f"model.{key}": value for key, value in model.items()}
    settings = [f"{key}={_text(value)}" for key, value in flat.items()]
    try:
        recipe(name or "base", settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('--set ')}") from error
    return name, settings


def read_recipe(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Return the recipe of a file; what it does not name is the preset's (``base`` where it names none).

    Raises:
        ConfigError: as ``read_changes``, and for ``changes`` as ``recipe``.
        OSError: the file cannot be read.
    """
    name, settings = read_changes(path)
    return recipe(name or "base", [*settings, *changes])


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe file."""
    own = {key: kind for key, kind in get_type_hints(TrainConfig).items() if key not in ("preset", "model")}
    network = _properties(IPTConfig, get_type_hints(IPTConfig))
    preset = {"enum": list(PRESETS), "description": "what the settings that the file leaves out are taken from"}
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "a recipe of ipt-fast"}
    return draft | _object({"preset": preset, **_properties(TrainConfig, own), "model": _object(network)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _properties(owner: type, kinds: dict[str, Any]) -> dict[str, Any]:
    described = _descriptions(owner)
    return {key: _schema_of(kind) | {"description": described[key]} for key, kind in kinds.items()}


def _schema_of(kind: Any) -> dict[str, Any]:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(arg) for arg in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(args[0])}
    # YAML reads 5e-5 as text.
    if kind is float:
        return {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[+-]?[0-9.]+[eE][+-]?[0-9]+$"}]}
    return {"type": {int: "integer", bool: "boolean", str: "string", type(None): "null"}[kind]}


def _descriptions(owner: type) -> dict[str, str]:
    """Return setting -> what the class's docstring says of it."""
    found: dict[str, str] = {}
    text = (owner.__doc__ or "").partition("Args:\n")[2]
    for names, said in re.findall(r"^ {8}([\w, ]+): (.+?)(?=^ {8}\w|\Z)", text, re.MULTILINE | re.DOTALL):
        found |= {name.strip(): " ".join(said.split()).replace("``", "") for name in names.split(",")}
    return found
