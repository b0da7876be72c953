"""The DALI loader: region decode in DALI's threads or on the GPU, on the same plan as the PyTorch loader.

CPU decoding gives the same pixels as the PyTorch loader, bit for bit. The plan alone says what comes next, so DALI's
own checkpoints are not needed: a new pipeline is fed from the step of the checkpoint on.
"""

import importlib
import importlib.util
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
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

# Pipelines that decode on a CPU, in turn: one works while threads of the other wait for the last photo of a batch.
_CPU_PIPELINES = 2

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
            run = _Run(self._source, self._rank, self._world_size, step, self._pipelines, self._prefetch)
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

    def _pipelines(self) -> list[Any]:
        from ipt_fast.data.dali_pipeline import build_pipeline

        count = 1 if self._device_id is not None else min(_CPU_PIPELINES, self._threads)
        return [
            build_pipeline(
                batch_size=self._source.plan.global_batch // self._world_size,
                crops_per_image=self._source.plan.crops_per_image,
                threads=(self._threads + i) // count,
                prefetch=self._prefetch,
                device_id=self._device_id,
            )
            for i in range(count)
        ]


class _DecodeError(RuntimeError):
    """DALI raised while it ran."""


@contextmanager
def _decode_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _DecodeError(" ".join(str(error).split())[:300]) from error


class _Run:
    """Pipelines at work, batch by batch in turn: feeds them as far ahead as they may run and takes what they made."""

    def __init__(
        self,
        source: CropSource,
        rank: int,
        world_size: int,
        step: int,
        make_pipelines: Callable[[], list[Any]],
        prefetch: int,
    ) -> None:
        from ipt_fast.data.dali_pipeline import BOX_INPUTS, CROP_INPUTS

        others = thread_ids(_THREADS)
        self._pipelines = make_pipelines()
        self._threads = thread_ids(_THREADS) - others
        self._spent = cpu_seconds(self._threads)
        self._inputs = BOX_INPUTS if source.plan.crops_per_image == 1 else BOX_INPUTS + CROP_INPUTS
        self._ahead = prefetch * len(self._pipelines)
        self._reader = Reader(source, rank, world_size, step, self._ahead)
        self._under_way: deque[EncodedBatch] = deque()

    def __iter__(self) -> Iterator[Made]:
        feed, take = cycle(self._pipelines), cycle(self._pipelines)
        # A pipeline's first run is that of all batches ahead, so these have to be there before it.
        for _ in range(self._ahead):
            self._feed(feed, wait=True)
        for pipeline in self._pipelines:
            self._schedule(pipeline)
        while True:
            made = self._take(next(take))
            # Only now, so that the threads which this wakes do not keep the caller waiting.
            while len(self._under_way) < self._ahead:
                fed = self._feed(feed, wait=not self._under_way)
                if fed is None:
                    break
                self._schedule(fed)
            yield made

    def _take(self, pipeline: Any) -> Made:
        with _decode_errors():
            (output,) = pipeline.share_outputs()
        batch = self._under_way.popleft()
        self._reader.done_with(batch)
        crops = torch.from_dlpack(output.as_tensor())  # [n, K, S, S, 3]
        pipeline.release_outputs()
        return Made(_finish(crops, batch), batch.bad, self._seconds())

    def _seconds(self) -> float | None:
        """CPU time of the pipeline's threads since the last batch: they work on the next ones by now."""
        before, self._spent = self._spent, cpu_seconds(self._threads)
        return None if before is None or self._spent is None else self._spent - before

    def stop(self) -> None:
        self._pipelines = []  # their threads end before the photos go that they read
        self._reader.stop()

    def _feed(self, pipelines: Iterator[Any], wait: bool) -> Any | None:
        """The pipeline that got the next batch; None where that is not read yet and ``wait`` is False."""
        batch = self._reader.get(wait)
        if batch is None:
            return None
        pipeline = next(pipelines)
        with _decode_errors():
            for name in self._inputs:
                pipeline.feed_input(name, getattr(batch, name))
        self._under_way.append(batch)
        return pipeline

    def _schedule(self, pipeline: Any) -> None:
        with _decode_errors():
            pipeline.schedule_run()


def _finish(crops: Tensor, batch: EncodedBatch) -> Tensor:
    """[n, K, S, S, 3] -> [B, 3, S, S]: crops in the order of the batch, mirrored where the photo is smaller."""
    # With numpy on a CPU: PyTorch shares even a copy out among threads, which then spin where DALI's want to decode.
    on_cpu = crops.device.type == "cpu"
    pixels: Any = crops.flatten(0, 1)
    if on_cpu:
        pixels = pixels.numpy()
    order = batch.order
    if len(order) != len(pixels) or (order != np.arange(len(order))).any():
        pixels = pixels[order]
    shapes = batch.crop_shapes[order // crops.shape[1]]
    for sample in np.flatnonzero((shapes < batch.plan.size).any(1)).tolist():
        height, width = shapes[sample].tolist()
        mirror_fill(pixels[sample], height, width, np.flip if on_cpu else torch.flip)
    if on_cpu:
        pixels = torch.from_numpy(pixels)
    return pixels.permute(0, 3, 1, 2)
