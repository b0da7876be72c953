"""The DALI loader: region decode in DALI's threads or on the GPU, on the same plan as the PyTorch loader.

CPU decoding gives the same pixels as the PyTorch loader, bit for bit. The plan alone says what comes next, so DALI's
own checkpoints are not needed: a new pipeline is fed from the step of the checkpoint on.
"""

import importlib
import importlib.util
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.decode import mirror_fill
from ipt_fast.data.encoded import EncodedBatch, Reader
from ipt_fast.data.loader import CropLoader, Made
from ipt_fast.data.source import CropSource
from ipt_fast.data.thread_time import cpu_seconds, thread_ids

# Batches in a row that DALI may fail to decode before its error is raised.
_MAX_FAILURES = 8

# What the names of DALI's threads start with.
_THREADS = "[DALI]"


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
    """See ``make_loader``. Crops lie on the GPU where it decodes."""

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
        self._threads = cpu_cores() if workers is None else max(1, workers)
        self._prefetch = prefetch
        self._device_id = None if device.type == "cpu" else torch.cuda.current_device()
        where = "CPU" if self._device_id is None else f"GPU {self._device_id}"
        super().__init__(source, rank, world_size, f"DALI loader, {where} decoding, {self._threads} threads")

    def _open(self, step: int) -> Iterator[Made]:
        return self._produce(step)

    def _shut(self, stream: Any) -> None:
        stream.close()

    def _produce(self, step: int) -> Iterator[Made]:
        """Batches from ``step`` on. A batch that DALI cannot decode is decoded without it, and DALI starts anew."""
        failures = 0
        while True:
            error = None
            others = thread_ids(_THREADS)
            pipeline = self._pipeline()
            threads = thread_ids(_THREADS) - others
            run = _Run(self._source, self._rank, self._world_size, step, pipeline, threads, self._prefetch)
            try:
                for batch in run:
                    step, failures = step + 1, 0
                    yield batch
            except _DecodeError as raised:
                error = raised
            finally:
                run.stop()
            failures += 1
            if failures > _MAX_FAILURES:
                raise RuntimeError(f"DALI cannot decode {failures} batches in a row: {error}") from error
            warnings.warn(f"DALI could not decode batch {step}, it is decoded without it: {error}", stacklevel=2)
            crops, bad = self._source.crops(self._source.plan.batch(step, self._rank, self._world_size))
            step += 1
            yield Made(torch.from_numpy(crops).to("cpu" if self._device_id is None else "cuda"), bad)

    def _pipeline(self) -> Any:
        from ipt_fast.data.dali_pipeline import build_pipeline

        return build_pipeline(
            batch_size=self._source.plan.global_batch // self._world_size,
            crops_per_image=self._source.plan.crops_per_image,
            threads=self._threads,
            prefetch=self._prefetch,
            device_id=self._device_id,
        )


class _DecodeError(RuntimeError):
    """DALI raised while it ran."""


@contextmanager
def _decode_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _DecodeError(" ".join(str(error).split())[:300]) from error


class _Run:
    """One pipeline at work: feeds it as far ahead as it may run and takes its outputs in order."""

    def __init__(
        self,
        source: CropSource,
        rank: int,
        world_size: int,
        step: int,
        pipeline: Any,
        threads: set[int],
        prefetch: int,
    ) -> None:
        from ipt_fast.data.dali_pipeline import BOX_INPUTS, CROP_INPUTS

        self._pipeline = pipeline
        self._threads = threads
        self._spent = cpu_seconds(threads)
        self._inputs = BOX_INPUTS if source.plan.crops_per_image == 1 else BOX_INPUTS + CROP_INPUTS
        self._prefetch = prefetch
        self._reader = Reader(source, rank, world_size, step, prefetch)
        self._under_way: deque[EncodedBatch] = deque()

    def __iter__(self) -> Iterator[Made]:
        # DALI's first run is that of all batches ahead, so these have to be there before it.
        for _ in range(self._prefetch):
            self._feed(wait=True)
        self._schedule()
        while True:
            while len(self._under_way) < self._prefetch and self._feed(wait=not self._under_way):
                self._schedule()
            with _decode_errors():
                (output,) = self._pipeline.share_outputs()
            batch = self._under_way.popleft()
            self._reader.done_with(batch)
            crops = torch.from_dlpack(output.as_tensor())  # [n, K, P, P', 3]
            self._pipeline.release_outputs()
            yield Made(_finish(crops, batch), batch.bad, self._seconds())

    def _seconds(self) -> float | None:
        """CPU time of the pipeline's threads since the last batch: they work on the next ones by now."""
        before, self._spent = self._spent, cpu_seconds(self._threads)
        return None if before is None or self._spent is None else self._spent - before

    def stop(self) -> None:
        self._pipeline = None  # its threads end before the photos go that they read
        self._reader.stop()

    def _feed(self, wait: bool) -> bool:
        """Hand the next batch to the pipeline; False where it is not read yet and ``wait`` is False."""
        batch = self._reader.get(wait)
        if batch is None:
            return False
        with _decode_errors():
            for name in self._inputs:
                self._pipeline.feed_input(name, getattr(batch, name))
        self._under_way.append(batch)
        return True

    def _schedule(self) -> None:
        with _decode_errors():
            self._pipeline.schedule_run()


def _finish(crops: Tensor, batch: EncodedBatch) -> Tensor:
    """[n, K, P, P', 3] -> [B, 3, S, S]: crops in the order of the batch, mirrored where the photo is smaller."""
    per_photo = crops.shape[1]
    crops = crops.flatten(0, 1)
    order = batch.order
    if len(order) != len(crops) or (order != np.arange(len(order))).any():
        crops = crops[torch.from_numpy(order).to(crops.device)]
    size = batch.plan.size
    shapes = batch.crop_shapes[order // per_photo]
    small = np.flatnonzero((shapes < size).any(1))
    if not len(small):
        return crops.permute(0, 3, 1, 2)
    out = crops if crops.shape[1:3] == (size, size) else crops.new_empty(len(crops), size, size, 3)
    for sample in small.tolist():
        height, width = shapes[sample].tolist()
        if out is not crops:
            out[sample, :height, :width] = crops[sample, :height, :width]
        mirror_fill(out[sample], height, width, torch.flip)
    return out.permute(0, 3, 1, 2)
