"""The loader's face: endless batches of crops, whatever decodes them, resumable at any batch."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

from ipt_fast.data.prefetch import PrefetchIterator
from ipt_fast.data.source import Batch, CropSource, DecodedBatch

# Unreadable photos named in full by stats(); all are counted.
_NAMED = 100
# What earlier versions called the task of any pairs in a loader's state.
_ONCE_ANY_PAIRS = ["deblur"]

# Batches, or calls of what is left to do for one in the caller's thread.
Item = DecodedBatch | Callable[[], DecodedBatch]
Stream = PrefetchIterator[Item] | Generator[Item, None, None]


class CropLoader(ABC):
    """Iterating never ends: epochs follow each other. ``state_dict`` is the place of the next batch to be yielded.

    Attributes:
        batches_per_epoch: steps of one epoch, equal on all ranks.
        description: one line on which loader this is and why.
    """

    def __init__(self, source: CropSource, description: str) -> None:
        self._source = source
        self._step = 0
        self._stream: Stream | None = None
        self._unreadable: dict[str, str] = {}
        self._replaced = 0
        self._wait_seconds = 0.0
        self._batches = self._new_batches = 0  # since ``stats`` was last asked: new
        self._new_seconds = 0.0  # of decoding
        self.description = description
        self.batches_per_epoch = source.plan.batches_per_epoch

    @abstractmethod
    def _open(self, step: int) -> Stream:
        """Start decoding the batches from that global step on, ahead of time where possible."""

    def __iter__(self) -> "CropLoader":
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        if self._stream is None:
            self._stream = self._open(self._step)
        item = next(self._stream)
        batch, unreadable, seconds = item() if callable(item) else item
        for path, reason in unreadable:
            self._replaced += 1
            if path not in self._unreadable:
                self._unreadable[path] = reason
                warnings.warn(f"an unreadable photo is replaced by another: {path}: {reason}", stacklevel=2)
        self._step += 1
        self._batches += 1
        self._new_batches += 1
        self._new_seconds += seconds
        self._wait_seconds += time.perf_counter() - started
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the next batch not yet yielded (prefetched ones do not count), in plain values."""
        return {"step": self._step, "epoch": self._step // self.batches_per_epoch, **self._source.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where that state was taken, in the middle of an epoch or not.

        Raises:
            ValueError: the state was taken with another seed, global batch size, patch size, tasks or crops an image.
        """
        needed = self._source.identity()
        if self._source.paired and state.get("tasks") == _ONCE_ANY_PAIRS:
            state = {**state, "tasks": needed["tasks"]}
        for key in needed:
            if key != "photos" and state.get(key) != needed[key]:
                raise ValueError(
                    f"the loader's state was taken with {key}={state.get(key)!r}, this loader has {needed[key]!r}; "
                    "resume with the same settings (the global batch is batch_size times the number of ranks)"
                )
        if state["photos"] != needed["photos"]:
            warnings.warn(
                "the photos have changed since this state was taken: training goes on at the same step, "
                "but in another order than an unbroken run",
                stacklevel=2,
            )
        self.close()
        self._step = int(state["step"])

    def stats(self) -> dict[str, Any]:
        """Return counts since the loader was made.

        ``batches``; ``wait_seconds``, the time the caller waited in ``next``; ``decode_ms``, the mean time of one core
        to read, decode and cut a batch since this was last asked (None with DALI, which does not tell);
        ``bad_samples``, crops replaced because their photo is unreadable; ``bad_files``, the number of such photos, and
        ``bad_paths``, path -> reason of the first 100.
        """
        batches, seconds = self._new_batches, self._new_seconds
        self._new_batches, self._new_seconds = 0, 0.0
        return {
            "batches": self._batches,
            "wait_seconds": self._wait_seconds,
            "decode_ms": 1e3 * seconds / batches if seconds else None,
            "bad_samples": self._replaced,
            "bad_files": len(self._unreadable),
            "bad_paths": dict(list(self._unreadable.items())[:_NAMED]),
        }

    def close(self) -> None:
        """Stop workers. The loader may be iterated again and goes on where it was."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
