"""Resume a run from a checkpoint: everything is compared before anything is loaded."""

import logging
import random
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from ipt_fast.checkpoint.read import CheckpointError

# Settings that may differ without changing a single weight.
_FREE = {
    "workers", "prefetch", "loader", "checkpoint_every", "keep_every", "log_every", "max_bad_steps", "preset",
    "compile", "recompute",
}  # fmt: skip
_log = logging.getLogger(__name__)


class Stateful(Protocol):
    """What has a state to restore: an optimizer's loss scale, a loader."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take the state over."""


def restore_state(
    name: str,
    state: Mapping[str, Any],
    *,
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    scaler: Stateful,
    loader: Stateful,
    config: Mapping[str, Any],
    device: torch.device,
    rank: int = 0,
) -> None:
    """Put a training state (of ``load_training_state``) into the parts of a run.

    The settings of this run win over those of the file, and are logged where they differ; moments and counts come from
    the file.

    Args:
        name: of the file, for messages.
        state: its content.
        model: the network trained.
        ema: its moving average, or None. Where the file has none, it starts from the file's weights.
        optimizer: over the same parameters as the file's.
        scaler: the loss scale.
        loader: refuses another order of the data with a ValueError.
        config: all settings of this run, as ``TrainConfig.to_dict`` gives them.
        device: whose random number generator is restored, beside those of the CPU.
        rank: of this process.

    Raises:
        CheckpointError: it is of another network, optimizer or data order; nothing has been loaded then.
    """
    _compare_weights(name, state["model"], model.state_dict())
    groups = optimizer.state_dict()["param_groups"]
    parameters, own = ([len(group["params"]) for group in g] for g in (state["optimizer"]["param_groups"], groups))
    if parameters != own:
        raise CheckpointError(f"{name}: its optimizer has {parameters} parameters, this run {own}")
    if ema is not None and state.get("ema") is not None:
        _compare_weights(name, state["ema"], ema.state_dict())
    try:
        loader.load_state_dict(state["loader"])
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error

    _log_differences(state["config"], config)
    model.load_state_dict(state["model"])
    if ema is not None:
        ema.load_state_dict(state["model"] if state.get("ema") is None else state["ema"])
    optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    scaler.load_state_dict(state["scaler"])
    rng = state["rng"]
    restore_generators(rng[min(rank, len(rng) - 1)], device)


def _compare_weights(name: str, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    wrong = [f"{key} is missing" for key in wanted if key not in given]
    wrong += [f"{key} is unknown here" for key in given if key not in wanted]
    wrong += [
        f"{key} is {list(given[key].shape)}, needed {list(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{name}: holds another network: {'; '.join(wrong[:3])}{more}; give the same preset, tasks and settings"
        )
    if broken := [key for key, value in given.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(f"{name}: {broken[0]} holds values that are not finite")


def _log_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [
        f"{key} was {then.get(key)!r}, is {now[key]!r}"
        for key in now
        if key not in _FREE and then.get(key) != now[key] and key != "model"
    ]
    if differing:
        _log.warning("the run goes on with other settings: %s", "; ".join(differing))


def generator_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the generators of torch (CPU, and the GPU of this rank), Python and NumPy.

    All in plain types that a weights-only load takes.
    """
    name, keys, position, has_gauss, cached = cast(tuple, np.random.get_state(legacy=True))
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Set all generators as ``generator_states`` found them."""
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
