"""What a run leaves for later reading: log.jsonl, one JSON object a line, and a TensorBoard log beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipt_fast.io.atomic import atomic_write

LOG = "log.jsonl"


class RunLog:
    """Writes ``log.jsonl`` and, where tensorboard is installed, ``tensorboard/``. A full disk is said once.

    Args:
        out: folder of the run.
        step: the step that the run goes on from; lines of later steps, from a run that was cut off, are dropped.
        say: takes a line for the person at the terminal.
    """

    def __init__(self, out: Path, step: int, say: Callable[[str], None]):
        self.path = out / LOG
        self._say = say
        self._failed = False
        _drop_after(self.path, step)
        self._board = self._open_board(out / "tensorboard", step)

    def _open_board(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._say('no TensorBoard log: tensorboard is not installed (pip install "ipt-fast[train]")')
            return None
        return SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, record: dict[str, Any]) -> None:
        """One line. Numbers also go to TensorBoard, nested ones as group/name."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(record)) + "\n")
            if self._board is not None and "step" in record:
                for name, value in _scalars(record):
                    self._board.add_scalar(name, value, record["step"])
        except OSError as error:
            if not self._failed:
                self._say(f"WARNING: the log cannot be written ({error}); training goes on")
            self._failed = True

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is None:
            return
        try:
            self._board.close()
        except OSError as error:
            self._say(f"WARNING: the TensorBoard log cannot be written ({error})")


def _scalars(record: dict[str, Any], prefix: str = "train/"):
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("step", "time"):
            yield prefix + key, value


def _finite(value: Any) -> Any:
    """JSON has no nan and no inf: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line)
        except (json.JSONDecodeError, AttributeError):
            continue  # a line cut off by a kill
    with atomic_write(path, "w") as file:
        file.write("".join(line + "\n" for line in kept))
