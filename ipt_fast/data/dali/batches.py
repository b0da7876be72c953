"""Batches out of DALI's pipelines, one after the other in the order of the plan, whatever DALI makes of a photo."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from ipt_fast.data.dali.encoded import EncodedBatch, Reader
from ipt_fast.data.source import CropSource
from ipt_fast.data.thread_time import thread_ids
from ipt_fast.data.types import DecodedBatch
from ipt_fast.io.mirror import mirror_fill

# Batches in a row that DALI may fail to decode before its error is raised.
_MAX_FAILURES = 8

# Pipelines that decode on a CPU, in turn: one works while threads of the other wait for the last photo of a batch.
_CPU_PIPELINES = 2

# What the names of DALI's threads start with.
_THREADS = "[DALI]"


class DaliBatches:
    """One rank's batches, decoded by ``threads`` threads or on GPU ``device_id``.

    Attributes:
        working: the threads of the pipelines at work.
    """

    def __init__(
        self, source: CropSource, rank: int, world_size: int, *, threads: int, prefetch: int, device_id: int | None
    ) -> None:
        self._source = source
        self._rank = rank
        self._world_size = world_size
        self._threads = threads
        self._prefetch = prefetch
        self._device_id = device_id
        self.working: frozenset[int] = frozenset()

    def decoded(self, step: int) -> Iterator[Callable[[], DecodedBatch]]:
        """Batches from ``step`` on, each as a call of what is left to do, on the caller's own CUDA stream.

        A batch that DALI cannot decode is decoded without it, and DALI starts anew.
        """
        failures = 0
        while True:
            error, self.working = None, frozenset()
            others = thread_ids(_THREADS)
            run = _Run(Reader(self._source, self._rank, self._world_size, step), self._pipelines(), self._prefetch)
            try:
                for batch in run:
                    # Only now do all threads bear their names.
                    self.working = self.working or thread_ids(_THREADS) - others
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
            yield partial(self._without_dali, step)
            step += 1

    def _without_dali(self, step: int) -> DecodedBatch:
        plan = self._source.plan.batch(step, self._rank, self._world_size)
        crops, bad = self._source.crops(plan)
        device = "cpu" if self._device_id is None else f"cuda:{self._device_id}"
        return DecodedBatch(plan, torch.from_numpy(crops).to(device), bad)

    def _pipelines(self) -> list[Any]:
        from ipt_fast.data.dali.pipeline import build_pipeline

        plan = self._source.plan
        count = 1 if self._device_id is not None else min(_CPU_PIPELINES, self._threads)
        return [
            build_pipeline(
                batch_size=plan.global_batch // self._world_size,
                crops_per_image=plan.crops_per_image,
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
    """Pipelines at work, batch by batch in turn, each fed as far ahead as it may run."""

    def __init__(self, reader: Reader, pipelines: list[Any], prefetch: int) -> None:
        self._reader = reader
        self._pipelines = pipelines
        self._prefetch = prefetch
        self._under_way: deque[EncodedBatch] = deque()

    def __iter__(self) -> Iterator[Callable[[], DecodedBatch]]:
        # A pipeline's first run is that of all batches ahead, so these have to be there before it.
        for _ in range(self._prefetch):
            for pipeline in self._pipelines:
                self._feed(pipeline)
        for pipeline in self._pipelines:
            self._schedule(pipeline)
        for pipeline in cycle(self._pipelines):
            yield self._take(pipeline)
            self._feed(pipeline)
            self._schedule(pipeline)

    def stop(self) -> None:
        """Let go of the pipelines, whose threads end before the photos go that they read."""
        self._pipelines = []
        self._reader.close()

    def _feed(self, pipeline: Any) -> None:
        batch = self._reader.read()
        with _decode_errors():
            for name, value in batch.inputs().items():
                pipeline.feed_input(name, value)
        self._under_way.append(batch)

    def _schedule(self, pipeline: Any) -> None:
        with _decode_errors():
            pipeline.schedule_run()

    def _take(self, pipeline: Any) -> Callable[[], DecodedBatch]:
        with _decode_errors():
            (output,) = pipeline.share_outputs()
            pipeline.release_outputs()  # for others to follow; its memory stays while somebody holds it
        batch = self._under_way.popleft()
        self._reader.done_with(batch)
        return partial(_finish, output, batch)


def _finish(output: Any, batch: EncodedBatch) -> DecodedBatch:
    """uint8 [n, K, S, S, 3] -> [B, 3, S, S]: crops in the order of the batch, mirrored where the photo is smaller."""
    crops = torch.from_dlpack(output.as_tensor())
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
    return DecodedBatch(batch.plan, pixels.permute(0, 3, 1, 2), batch.bad)
