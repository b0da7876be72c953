"""Checkpoints: one torch.save file, written so that a kill at any moment leaves the last good one.

A file holds {"format", "config", "model", "ema", "optimizer", "scaler", "schedule", "rng", "loader", "step", "epoch"}.
``checkpoint.pt`` is the newest, ``checkpoint.previous.pt`` the one before it.
"""

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import torch

FORMAT = "ipt-fast/1"
LATEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
_KEYS = {"format", "config", "model", "optimizer", "scaler", "schedule", "rng", "loader", "step", "epoch"}


class CheckpointError(RuntimeError):
    """A file that cannot be used; the message names it."""


class _Writer:
    """A file that remembers why a write failed: torch.save turns a full disk into an unrelated message."""

    def __init__(self, file):
        self.file = file
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``: to a temporary file beside it, flushed to the disk, then moved into place.

    A ``checkpoint.pt`` already there becomes ``checkpoint.previous.pt``; at no moment is there neither.

    Raises:
        OSError: the disk is full or not writable; ``path`` is as it was before.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb", buffering=0) as file:
            writer = _Writer(file)
            try:
                torch.save({"format": FORMAT, **state}, cast(IO[bytes], writer))
            except RuntimeError as error:
                raise (writer.error or error) from error
            os.fsync(file.fileno())
        if path.name == LATEST and path.exists():
            _keep_as(path, path.with_name(PREVIOUS))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _keep_as(path: Path, other: Path) -> None:
    """``other`` becomes a second name of ``path``; where the file system has no links, ``path`` moves there."""
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


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is; not every system can do this to a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def load_training_state(path: str | Path) -> dict[str, Any]:
    """The whole content of a checkpoint, on the CPU. Loaded weights-only: a file cannot run code.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, foreign, or a checkpoint of something else. The message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        # torch.load does not look at the checksums that torch.save writes.
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad is not None:
            raise CheckpointError(f"{path}: damaged checkpoint, the checksum of {bad} does not fit")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = str(error).split("\n")[0][:160]
        raise CheckpointError(f"{path}: damaged or no checkpoint of this project ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: holds no training state of format {FORMAT}; give weights alone with --init")
    if missing := sorted(_KEYS - set(state)):
        raise CheckpointError(f"{path}: incomplete checkpoint, without {', '.join(missing)}")
    return state


def newest_good(folder: str | Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read, or None where there is none; each bad one is said.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be read.
    """
    errors = []
    for path in _candidates(Path(folder)):
        try:
            return path, load_training_state(path)
        except CheckpointError as error:
            errors.append(str(error))
            say(f"WARNING: {error}; trying the one before it")
    if errors:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read; move them away to start anew: {'; '.join(errors)}"
        )
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    kept = sorted(folder.glob("checkpoint_epoch*.pt"), reverse=True)
    return (path for path in [folder / LATEST, folder / PREVIOUS, *kept] if path.is_file())
