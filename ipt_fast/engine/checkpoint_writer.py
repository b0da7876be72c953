"""Checkpoints beside the training: the state is copied to host memory, and a thread writes the copy."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def stage(value: Any) -> Any:
    """Return a copy of nested tensors on the host, as later steps leave it alone.

    Those of a GPU go to pinned memory, on its current stream: they are there when an event recorded now has come.
    """
    if isinstance(value, Tensor):
        copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return copy.copy_(value, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: stage(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(stage, value))
    return value


class CheckpointWriter:
    """Writes one state after the other, in a thread.

    Args:
        device: of the states.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, "ipt-fast-checkpoint")
        self._last: Future[str | None] | None = None

    def start(self, state: Mapping[str, Any], write: Callable[[dict[str, Any]], str | None]) -> None:
        """Let ``write`` have a copy of ``state`` as it is now; waits for the write before.

        ``write`` returns None, or why it could not.
        """
        self.wait()
        staged = stage(state)
        copied = torch.cuda.current_stream().record_event() if self._cuda else None

        def run() -> str | None:
            if copied is not None:
                copied.synchronize()
            return write(staged)

        self._last = self._thread.submit(run)

    def wait(self) -> str | None:
        """Wait for the last write, and return what it has returned."""
        return self._last.result() if self._last is not None else None
