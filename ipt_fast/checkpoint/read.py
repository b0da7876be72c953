"""Weights and training states out of files: torch.save files of several shapes and safetensors; no code is run."""

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT = "ipt-fast/1"
# Where projects put the weights inside a file; the averaged weights first, as they are the better ones.
_CONTAINERS = ("ema", "params_ema", "params", "state_dict", "model_state_dict", "model", "net", "net_g", "generator")
_PREFIXES = ("module.", "model.", "net.", "net_g.", "generator.", "_orig_mod.")
_PROBE = "head.0.0.weight"


class CheckpointError(RuntimeError):
    """A file that cannot be used; the message names it."""


@dataclass
class WeightFile:
    """Weights under the released key names, and what the file says about the network (None: nothing)."""

    weights: dict[str, Tensor]
    config: dict[str, Any] | None = None


def read_weights(path: str | Path) -> WeightFile:
    """Read the weights in a file, onto the CPU.

    Takes safetensors and torch.save files: bare, or under ``params_ema``, ``params``, ``state_dict``, ``model``, with
    or without prefixes such as ``module.``, ``model.`` and ``net_g.``, and this project's checkpoints (their moving
    average where they hold one).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, foreign, or it needs code to load; the message names the file and says why.
    """
    path = Path(path)
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
    return WeightFile(_state_dict(path, content), config)


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


def _read_safetensors(path: Path) -> WeightFile:
    _check_kind(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            notes = dict(file.metadata() or {})
            content: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(notes["config"]) if "config" in notes else None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or a damaged one ({error})") from error
    return WeightFile(_state_dict(path, content), config)


def _state_dict(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    """Return the dict of weights inside ``content``, prefixes taken off."""
    candidates = [content[name] for name in _CONTAINERS if isinstance(content.get(name), dict)]
    for candidate in [*candidates, content]:
        weights = {str(key): value for key, value in candidate.items() if isinstance(value, Tensor)}
        if (stripped := _without_prefix(weights)) is not None:
            return stripped
    first = [str(key) for key in (candidates[0] if candidates else content)][:3]
    raise CheckpointError(
        f"{path}: these are not the weights of an IPT; its first keys are {', '.join(first) or 'none'}, "
        f"expected were head.0.0.weight, body.encoder.layers.0.self_attn.in_proj_weight, tail.0.1.weight"
    )


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Take off what stands before ``head.0.0.weight``, and leave other networks out; None where no such key is."""
    prefix = next((key[: -len(_PROBE)] for key in weights if key.endswith(_PROBE)), None)
    if prefix is None:
        return None
    rest = prefix
    while rest:
        known = next((p for p in _PREFIXES if rest.startswith(p)), None)
        if known is None:
            return None
        rest = rest[len(known) :]
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
