"""Weights and training states out of files: torch.save files of several shapes and safetensors; no code is run."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.checkpoint.errors import CheckpointError
from ipt_fast.checkpoint.locate import located

FORMAT = "ipt-fast/1"
# Where projects put the weights inside a file; the averaged weights first, as they are the better ones.
_CONTAINERS = ("ema", "params_ema", "params", "state_dict", "model_state_dict", "model", "net", "net_g", "generator")
_FIRST = re.compile(r"((?:(?:module|model|net|net_g|generator|_orig_mod)\.)*)head\.0\.0\.weight")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the weights in a file, under the released key names, and its network's settings where it holds them.

    Takes safetensors and torch.save files: bare, or under ``params_ema``, ``params``, ``state_dict``, ``model``, with
    or without prefixes such as ``module.``, ``model.`` and ``net_g.``, and this project's checkpoints (their moving
    average where they hold one).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, foreign, or it needs code to load; the message names the file and says why.
    """
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, needed is a dict of weights")
    config = None
    if content.get("format") == FORMAT:
        config = content.get("config")
        # A training checkpoint keeps the network's sizes inside its own settings.
        config = config.get("model", config) if isinstance(config, dict) else None
    elif str(content.get("format", "")).startswith("ipt-fast/"):
        raise CheckpointError(f"{path}: has format {content['format']}, this version reads {FORMAT}; update ipt-fast")
    return _state_dict(path, content), config


def read_torch_file(path: Path) -> Any:
    """Load a torch.save file weights-only onto the CPU, its checksums compared.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, no torch.save file, or it needs code to load.
    """
    _check_kind(path)
    try:
        if zipfile.is_zipfile(path):
            # torch.load does not look at the checksums that torch.save writes.
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad is not None:
                raise CheckpointError(f"{path}: damaged, the checksum of {bad} does not fit; fetch the file again")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, LookupError,
            TypeError, AttributeError, AssertionError, ImportError) as error:  # fmt: skip
        reason = str(error).strip()
        if "weights_only" in reason.lower() and "global" in reason.lower():
            what = reason.split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL " in reason else "something"
            raise CheckpointError(
                f"{path}: wants to run code on loading ({what}), which is refused; save the weights alone "
                "(state_dict) or as safetensors"
            ) from error
        if isinstance(error, pickle.UnpicklingError) or not reason:
            raise CheckpointError(f"{path}: not a checkpoint, or a damaged one") from error
        reason = reason.splitlines()[0][:120]
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({reason})") from error


def _check_kind(path: Path) -> None:
    """Refuse what is no file of weights at first sight, with a hint where it comes from."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint" + (" (it is a folder)" if path.is_dir() else ""))
    with open(path, "rb") as file:
        start = file.read(200).lstrip().lower()
    if not start:
        raise CheckpointError(f"{path}: damaged, the file is empty")
    if start.startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(
            f"{path}: a web page (HTML) instead of a checkpoint, as a failed download leaves it; fetch the file again"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer instead of a checkpoint; fetch the file itself: git lfs pull")


@checked
def read_notes(path: str | Path) -> dict[str, str]:
    """Return the header of a safetensors file beside its sizes; of other files nothing. Raises as ``read_weights``."""
    path = located(path)
    if path.suffix.lower() != ".safetensors":
        return {}
    _check_kind(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            notes = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or a damaged one ({error})") from error
    return {name: text for name, text in notes.items() if name not in ("format", "config")}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    _check_kind(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            notes = dict(file.metadata() or {})
            content: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(notes["config"]) if "config" in notes else None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or a damaged one ({error})") from error
    return _state_dict(path, content), config


def _state_dict(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    """Return the dict of weights inside ``content``, prefixes taken off; other networks are left out."""
    candidates = [content[name] for name in _CONTAINERS if isinstance(content.get(name), dict)]
    for candidate in [*candidates, content]:
        weights = {str(key): value for key, value in candidate.items() if isinstance(value, Tensor)}
        if match := next(filter(None, map(_FIRST.fullmatch, weights)), None):
            return {key.removeprefix(match[1]): value for key, value in weights.items() if key.startswith(match[1])}
    first = [str(key) for key in (candidates[0] if candidates else content)][:3]
    raise CheckpointError(
        f"{path}: these are not the weights of an IPT; its first keys are {', '.join(first) or 'none'}, "
        f"expected were head.0.0.weight, body.encoder.layers.0.self_attn.in_proj_weight, tail.0.1.weight"
    )


@checked
def check_weights(
    path: str | Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, advice: str = ""
) -> None:
    """Refuse a missing or unknown key, another shape, and values that are not finite.

    Raises:
        CheckpointError: names the file, ``what`` is wrong with it, the first keys that differ, and the advice.
    """
    wrong = []
    for key, value in wanted.items():
        if key not in given:
            wrong.append(f"{key} is missing, expected {list(value.shape)}")
        elif given[key].shape != value.shape:
            wrong.append(f"{key} is {list(given[key].shape)}, expected {list(value.shape)}")
    wrong += [f"{key} is not a weight of this network" for key in given if key not in wanted]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path}: {what}: {'; '.join(wrong[:3])}{more}{advice}")
    for key, value in given.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {key} holds values that are not finite")
