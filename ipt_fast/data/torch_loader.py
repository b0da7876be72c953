"""The PyTorch loader: worker processes that each make whole batches, with simplejpeg or Pillow as the decoder.

A thread takes what they send, so that the training does not wait for that.
"""

import signal
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.decode import simplejpeg
from ipt_fast.data.loader import CropLoader
from ipt_fast.data.prefetch import PrefetchIterator
from ipt_fast.data.source import CropSource
from ipt_fast.data.types import DecodedBatch
from ipt_fast.io.images import silence_pillow_warnings


class _Batches(Dataset):
    """step -> what ``DecodedBatch`` holds."""

    def __init__(self, source: CropSource, rank: int, world_size: int) -> None:
        self._source = source
        self._rank = rank
        self._world_size = world_size

    def __getitem__(self, step: int) -> DecodedBatch:
        started = time.perf_counter()
        plan = self._source.plan.batch(step, self._rank, self._world_size)
        crops, bad = self._source.crops(plan)
        return DecodedBatch(plan, torch.from_numpy(crops), bad, time.perf_counter() - started)


class TorchLoader(CropLoader):
    """See ``make_loader``. Batches come in order of their step from any number of workers."""

    def __init__(
        self, source: CropSource, rank: int, world_size: int, *, workers: int | None, prefetch: int, why: str
    ) -> None:
        self._workers = cpu_cores() if workers is None else workers
        if self._workers < 0:
            raise ValueError(f"workers is {workers}; it has to be 0 or more")
        decoder = "simplejpeg" if simplejpeg is not None else "Pillow (pip install simplejpeg for a faster one)"
        about = f"torch loader, {self._workers} workers, {decoder}"
        super().__init__(source, rank, world_size, f"{about}; {why}" if why else about)
        self._prefetch = prefetch

    def _open(self, step: int) -> Iterator[DecodedBatch]:
        loader = DataLoader(
            _Batches(self._source, self._rank, self._world_size),
            batch_size=None,
            sampler=count(step),
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
        )
        stream = iter(loader)
        return PrefetchIterator(_until_closed(stream)) if self._workers else stream

    def _shut(self, stream: Any) -> None:
        if self._workers:
            stream.close()


def _until_closed(stream: Any) -> Iterator[DecodedBatch]:
    """What the workers send. They are ended with it: they ignore SIGTERM, so that one which an exception's traceback
    still refers to would be waited for without end when Python exits."""
    try:
        yield from stream
    finally:
        stream._shutdown_workers()


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; the trainer stops its workers after the last checkpoint."""
    silence_pillow_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
