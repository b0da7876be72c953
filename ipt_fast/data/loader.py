"""The loader: endless batches of crops, whatever decodes them, resumable at any batch; and the one of PyTorch.

A thread receives what workers send, so that the training does not wait for that.
"""

import atexit
import signal
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.decode import simplejpeg
from ipt_fast.data.source import Batch, CropSource, DecodedBatch
from ipt_fast.io.images import silence_pillow_warnings

T = TypeVar("T")


class PrefetchIterator(Generic[T]):
    """Iterates over ``items`` in a thread, two ahead. An error is raised where its item would be.

    The items are closed in that thread when this is closed or let go of, and before a library they work in ends.
    """

    def __init__(self, items: Generator[T, None, None]) -> None:
        self._items, self._pool = items, ThreadPoolExecutor(1, "ipt-fast-prefetch")
        self._finalizer = weakref.finalize(self, _end, self._pool, items)
        atexit.register(self._finalizer)  # before what libraries that are loaded by now have registered
        self._ahead = deque(self._pool.submit(next, items) for _ in range(2))

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._ahead[0].result()  # an error stays there
        self._ahead.popleft()
        self._ahead.append(self._pool.submit(next, self._items))
        return item

    def close(self) -> None:
        """End the thread; nothing may be taken any more."""
        atexit.unregister(self._finalizer)
        self._finalizer()


def _end(pool: ThreadPoolExecutor, items: Generator[Any, None, None]) -> None:
    try:
        pool.submit(items.close)
    except RuntimeError:  # Python is ending, and has ended the thread
        items.close()
    pool.shutdown(wait=not threading.current_thread().name.startswith("ipt-fast-prefetch"))  # it may let go itself


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
        self._silence: list[Any] = []  # warning filters of ours, while it is open
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
            before = list(warnings.filters)
            silence_pillow_warnings()
            self._silence = [f for f in warnings.filters if f not in before]
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
            warnings.filters[:] = [f for f in warnings.filters if f not in self._silence]  # type: ignore[index]


class TorchLoader(CropLoader):
    """See ``make_loader``. Batches come in order of their step from any number of workers."""

    def __init__(self, source: CropSource, *, workers: int | None, prefetch: int, why: str = "") -> None:
        self._workers = cpu_cores() if workers is None else workers
        if self._workers < 0:
            raise ValueError(f"workers is {workers}; it has to be 0 or more")
        decoder = "simplejpeg" if simplejpeg is not None else "Pillow (pip install simplejpeg for a faster one)"
        description = f"torch loader, {self._workers} workers, {decoder}"
        super().__init__(source, f"{description}; {why}" if why else description)
        self._prefetch = prefetch

    def _open(self, step: int) -> Stream:
        loader = DataLoader(
            self._source,
            batch_size=None,
            sampler=count(step),
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise it draws from the caller's
        )
        stream = iter(loader)  # in this thread, which PyTorch tells of a killed worker
        return PrefetchIterator(_until_closed(stream)) if self._workers else _until_closed(stream)


def _until_closed(stream: Any) -> Generator[DecodedBatch, None, None]:
    """Yield what workers send, and end them with it: they ignore SIGTERM, so that one which an exception's traceback
    still refers to would be waited for without end when Python exits.
    """
    try:
        yield from stream
    except (ConnectionError, EOFError) as error:  # killed while it handed a batch over
        raise RuntimeError("a DataLoader worker was killed or has crashed") from error
    finally:
        if hasattr(stream, "_shutdown_workers"):
            stream._shutdown_workers()


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach the whole process group, to the trainer: it stops its workers after the
    last checkpoint.
    """
    silence_pillow_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
