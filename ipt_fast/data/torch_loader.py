"""The PyTorch loader: worker processes that each decode whole batches, with simplejpeg or Pillow.

A thread receives what they send, so that the training does not wait for that.
"""

import signal
import time
from collections.abc import Generator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ipt_fast.data.base import CropLoader, Stream
from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.decode import simplejpeg
from ipt_fast.data.prefetch import PrefetchIterator
from ipt_fast.data.source import CropSource
from ipt_fast.data.types import DecodedBatch
from ipt_fast.io.images import silence_pillow_warnings


class _Steps(Dataset):
    """step -> one rank's part of that batch, decoded."""

    def __init__(self, source: CropSource, rank: int, world_size: int) -> None:
        self._source = source
        self._rank = rank
        self._world_size = world_size

    def __getitem__(self, step: int) -> DecodedBatch:
        started = time.perf_counter()
        decoded = self._source.decode(self._source.plan.batch(step, self._rank, self._world_size))
        return decoded._replace(seconds=time.perf_counter() - started)


class TorchLoader(CropLoader):
    """See ``make_loader``. Batches come in order of their step from any number of workers."""

    def __init__(
        self, source: CropSource, rank: int, world_size: int, *, workers: int | None, prefetch: int, why: str = ""
    ) -> None:
        self._workers = cpu_cores() if workers is None else workers
        if self._workers < 0:
            raise ValueError(f"workers is {workers}; it has to be 0 or more")
        decoder = "simplejpeg" if simplejpeg is not None else "Pillow (pip install simplejpeg for a faster one)"
        description = f"torch loader, {self._workers} workers, {decoder}"
        super().__init__(source, rank, world_size, f"{description}; {why}" if why else description)
        self._prefetch = prefetch

    def _open(self, step: int) -> Stream:
        loader = DataLoader(
            _Steps(self._source, self._rank, self._world_size),
            batch_size=None,
            sampler=count(step),
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
        )
        stream = iter(loader)  # in this thread, which PyTorch tells of a killed worker
        return PrefetchIterator(_until_closed(stream)) if self._workers else _until_closed(stream)


def _until_closed(stream: Any) -> Generator[DecodedBatch, None, None]:
    """Yield what workers send, and end them with it: they ignore SIGTERM, so that one which an exception's traceback
    still refers to would be waited for without end when Python exits.
    """
    try:
        yield from stream
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
