"""Training checkpoints: one torch.save file, written so that a kill at any moment leaves the last good one.

A file holds {"format", "config", "model", "ema", "optimizer", "scaler", "schedule", "rng", "loader", "step", "epoch"}.
``checkpoint.pt`` is the newest, ``checkpoint.previous.pt`` the one before it.
"""

import logging
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ipt_fast.arguments import checked
from ipt_fast.checkpoint.errors import CheckpointError
from ipt_fast.checkpoint.read import FORMAT, read_torch_file
from ipt_fast.io.atomic import atomic_path, atomic_write

LATEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
BEST = "best.pt"  # of those that were validated, the one with the highest PSNR
_KEYS = {"format", "config", "model", "optimizer", "scaler", "schedule", "rng", "loader", "step", "epoch"}
_log = logging.getLogger(__name__)


@checked
def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``: to a temporary file beside it, flushed to the disk, then moved into place.

    A ``checkpoint.pt`` already there becomes ``checkpoint.previous.pt``; at no moment is there neither.

    Raises:
        OSError: the disk is full or not writable; ``path`` is as it was before.
    """
    path = Path(path)
    for part in path.parent.glob(f".{path.stem}.*.part{path.suffix}"):
        part.unlink(missing_ok=True)  # of a run that was killed while it wrote
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)
        os.fsync(file.fileno())
        if path.name == LATEST and path.exists():
            _keep_as(path, path.with_name(PREVIOUS))


@checked
def keep_best(path: str | Path) -> None:
    """Make ``best.pt`` a second name of a checkpoint, or a copy where the file system has no links.

    Raises:
        OSError: the copy cannot be written; ``best.pt`` is as it was before.
    """
    path = Path(path)
    with atomic_path(path.with_name(BEST)) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _keep_as(path: Path, other: Path) -> None:
    """Make ``other`` a second name of ``path``; where the file system has no links, ``path`` moves there."""
    link = other.with_name(other.name + ".tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, other)
        return
    try:
        os.replace(link, other)
    except OSError:
        link.unlink()
        raise


@checked
def load_training_state(path: str | Path) -> dict[str, Any]:
    """Load the whole content of a training checkpoint onto the CPU, weights-only: a file cannot run code.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, foreign, or a checkpoint of something else. The message names the file.
    """
    path = Path(path)
    state = read_torch_file(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: holds no training state of format {FORMAT}; give weights alone with --init")
    if missing := sorted(_KEYS - set(state)):
        raise CheckpointError(f"{path}: incomplete checkpoint, without {', '.join(missing)}")
    return state


@checked
def newest_good(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint of a run that can be read, None where there is none; each bad one is logged.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be read.
    """
    folder = Path(folder)
    kept = sorted(folder.glob("checkpoint_epoch*.pt"), reverse=True)
    errors = []
    for path in (folder / LATEST, folder / PREVIOUS, *kept):
        if not path.is_file():
            continue
        try:
            return path, load_training_state(path)
        except CheckpointError as error:
            errors.append(str(error))
            _log.warning("%s; trying the one before it", error)
    if errors:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read; move them away to start anew: {'; '.join(errors)}"
        )
    return None


@checked
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


@checked
def restore_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Set all generators as ``generator_states`` found them.

    Raises:
        ValueError: a generator is missing in ``states``.
    """
    if missing := [name for name in ("torch", "python", "numpy") if name not in states]:
        raise ValueError(f"restore_generators: states has none of {', '.join(missing)}")
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
