"""The DALI loader: region decode in DALI's threads or on the GPU, on the same plan as the PyTorch loader.

CPU decoding gives the same pixels as the PyTorch loader, bit for bit. The plan alone says what comes next, so DALI's
own checkpoints are not needed: a new pipeline is fed from the step of the checkpoint on.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch

from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.dali.batches import DaliBatches
from ipt_fast.data.loader import CropLoader, DecodedBatch
from ipt_fast.data.prefetch import PrefetchIterator
from ipt_fast.data.source import CropSource
from ipt_fast.data.thread_time import cpu_seconds


def why_not() -> str | None:
    """None where DALI can be used, else the reason."""
    try:
        found = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        return 'DALI is not installed (pip install "ipt-fast[dali-cu12]" or "ipt-fast[dali-cu13]")'
    try:
        importlib.import_module("nvidia.dali")
    except Exception as error:  # whatever keeps it from loading (a missing library, a wrong numpy)
        return f"DALI is installed and does not load: {error}"
    return None


class DaliLoader(CropLoader):
    """See ``make_loader``. Crops lie on the GPU where it decodes.

    All of DALI is driven by a thread of its own: to hand it work wakes its threads, which on a busy machine keeps the
    one that hands it over waiting for milliseconds.
    """

    def __init__(
        self,
        source: CropSource,
        rank: int,
        world_size: int,
        *,
        workers: int | None,
        prefetch: int,
        device: torch.device,
    ) -> None:
        threads = cpu_cores() if workers is None else max(1, workers)
        device_id = None if device.type == "cpu" else torch.cuda.current_device()
        self._on_gpu = device_id is not None
        where = "CPU" if device_id is None else f"GPU {device_id}"
        super().__init__(source, rank, world_size, f"DALI loader, {where} decoding, {threads} threads")
        self._dali = DaliBatches(source, rank, world_size, threads=threads, prefetch=prefetch, device_id=device_id)
        self._spent: tuple[frozenset[int], float] = frozenset(), 0.0

    def _open(self, step: int) -> Iterator[DecodedBatch]:
        calls = self._dali.decoded(step)
        if self._on_gpu:  # what is left to do are kernels, which belong on the caller's stream
            with closing(PrefetchIterator(calls)) as ready:
                yield from (call() for call in ready)
        else:
            with closing(PrefetchIterator(call() for call in calls)) as done:
                yield from done

    def _shut(self, stream: Any) -> None:
        stream.close()

    def _decoding_seconds(self) -> float | None:
        """CPU time of the pipelines' threads since this was last asked: they work on later batches by now."""
        threads = self._dali.working
        seconds = cpu_seconds(threads)
        if seconds is None:
            return None
        before = self._spent[1] if self._spent[0] == threads else 0.0
        self._spent = threads, seconds
        return seconds - before
