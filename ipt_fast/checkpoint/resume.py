"""Taking up a run from a checkpoint: everything is compared before anything is loaded."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipt_fast.checkpoint.generators import restore_generators
from ipt_fast.checkpoint.training_state import CheckpointError
from ipt_fast.engine.config import TrainConfig
from ipt_fast.engine.step import TrainStep

# Settings that may differ without changing a single weight.
_FREE = {
    "workers", "prefetch", "loader", "checkpoint_every", "keep_every", "log_every", "max_bad_steps", "preset",
    "compile", "recompute",
}  # fmt: skip


def restore_state(
    name: str,
    state: dict[str, Any],
    training: TrainStep,
    loader: Any,
    config: TrainConfig,
    say: Callable[[str], None],
) -> None:
    """Put the content of the checkpoint ``name`` into model, optimizer, loss scale, loader and generators.

    Raises:
        CheckpointError: it is of another network, optimizer or data order; nothing has been loaded then.
    """
    _compare_weights(name, state["model"], training.model.state_dict())
    parameters = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    own = [len(group["params"]) for group in training.optimizer.param_groups]
    if parameters != own:
        raise CheckpointError(f"{name}: its optimizer has {parameters} parameters, this run {own}")
    if training.ema is not None and state.get("ema") is not None:
        _compare_weights(name, state["ema"], training.ema.state_dict())
    try:
        loader.load_state_dict(state["loader"])
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error

    _say_differences(state["config"], config.to_dict(), say)
    training.model.load_state_dict(state["model"])
    if training.ema is not None:
        training.ema.load_state_dict(state["model"] if state.get("ema") is None else state["ema"])
    groups = training.optimizer.state_dict()["param_groups"]
    # The settings of this run win over those of the file; moments and counts come from the file.
    training.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    training.scale.load_state_dict(state["scaler"])
    rng = state["rng"]
    restore_generators(rng[min(training.world.rank, len(rng) - 1)], training.world.device)


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


def _say_differences(then: dict[str, Any], now: dict[str, Any], say: Callable[[str], None]) -> None:
    differing = [
        f"{key} was {then.get(key)!r}, is {now[key]!r}"
        for key in now
        if key not in _FREE and then.get(key) != now[key] and key != "model"
    ]
    if differing:
        say(f"WARNING: the run goes on with other settings: {'; '.join(differing)}")
