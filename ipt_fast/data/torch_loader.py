"""The PyTorch loader: worker processes that each decode whole batches, with simplejpeg or Pillow.

A thread receives what they send, so that the training does not wait for that.
"""

import signal
from collections.abc import Generator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader

from ipt_fast.data.base import CropLoader, Stream
from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.decode import simplejpeg
from ipt_fast.data.prefetch import PrefetchIterator
from ipt_fast.data.source import CropSource, DecodedBatch
from ipt_fast.io.images import silence_pillow_warnings


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
