"""The DALI loader: region decode in DALI's threads or on the GPU, on the same plan as the PyTorch loader.

CPU decoding gives the same pixels as the PyTorch loader, bit for bit. The plan alone says what comes next, so DALI's
own checkpoints are not needed: a new pipeline is fed from the step of the checkpoint on.
"""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import pipeline_def

from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.dali.encoded import EncodedBatch, Reader
from ipt_fast.data.loader import CropLoader, Item, PrefetchIterator, Stream
from ipt_fast.data.source import Batch, CropSource, DecodedBatch
from ipt_fast.io.mirror import mirror_pad

# Batches in a row that DALI may fail to decode before its error is raised.
_MAX_FAILURES = 8

# Pipelines that decode on a CPU, in turn: one works while threads of the other wait for the last photo of a batch.
_CPU_PIPELINES = 2


class DaliLoader(CropLoader):
    """See ``make_loader``. Crops lie on the GPU where it decodes.

    All of DALI is driven by a thread of its own: to hand it work wakes its threads, which on a busy machine keeps the
    one that hands it over waiting for milliseconds.
    """

    def __init__(
        self, source: CropSource, *, workers: int | None, prefetch: int, device: torch.device, why: str = ""
    ) -> None:
        self._threads = cpu_cores() if workers is None else max(1, workers)
        self._device_id = None if device.type == "cpu" else torch.cuda.current_device()
        self._prefetch = prefetch
        where = "CPU" if self._device_id is None else f"GPU {self._device_id}"
        description = f"DALI loader, {where} decoding, {self._threads} threads"
        super().__init__(source, f"{description}; {why}" if why else description)

    def _open(self, step: int) -> Stream:
        return PrefetchIterator(self._run(step))

    def _run(self, step: int) -> Generator[Item, None, None]:
        """Yield batches from ``step`` on, in DALI's thread.

        Those of a GPU come as a call of what is left to do: kernels, which belong on the caller's own CUDA stream. A
        batch that DALI cannot decode is decoded without it, and DALI starts anew.
        """
        failures, on_gpu = 0, self._device_id is not None
        while True:
            error = None
            run = _Run(Reader(self._source, step), self._pipelines(), self._prefetch)
            try:
                for finish in run:
                    step, failures = step + 1, 0
                    yield finish if on_gpu else finish()
            except _DecodeError as raised:
                error = raised
            finally:
                run.stop()
            failures += 1
            if failures > _MAX_FAILURES:
                raise RuntimeError(f"DALI cannot decode {failures} batches in a row: {error}") from error
            warnings.warn(f"DALI could not decode batch {step}, it is decoded without it: {error}", stacklevel=2)
            yield partial(self._without_dali, step) if on_gpu else self._without_dali(step)
            step += 1

    def _without_dali(self, step: int) -> DecodedBatch:
        batch, unreadable, _ = self._source[step]
        device = "cpu" if self._device_id is None else f"cuda:{self._device_id}"
        return DecodedBatch(batch._replace(gt=batch.gt.to(device)), unreadable)

    def _pipelines(self) -> list[Any]:
        count = 1 if self._device_id is not None else min(_CPU_PIPELINES, self._threads)
        return [
            _build_pipeline(
                batch_size=self._source.batch_size,
                crops_per_image=self._source.plan.crops_per_image,
                threads=(self._threads + i) // count,
                prefetch=self._prefetch,
                device_id=self._device_id,
            )
            for i in range(count)
        ]


class _DecodeError(RuntimeError):
    """DALI raised while it ran."""


def _call(method: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return method(*arguments)
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
            _call(pipeline.schedule_run)
        for pipeline in cycle(self._pipelines):
            yield self._take(pipeline)
            self._feed(pipeline)
            _call(pipeline.schedule_run)

    def stop(self) -> None:
        """Let go of the pipelines, whose threads end before the photos go that they read."""
        self._pipelines = []
        self._reader.close()

    def _feed(self, pipeline: Any) -> None:
        batch = self._reader.read()
        for name, value in batch.inputs.items():
            _call(pipeline.feed_input, name, value)
        self._under_way.append(batch)

    def _take(self, pipeline: Any) -> Callable[[], DecodedBatch]:
        (output,) = _call(pipeline.share_outputs)
        _call(pipeline.release_outputs)  # for others to follow; its memory stays while somebody holds it
        batch = self._under_way.popleft()
        self._reader.done_with(batch)
        return partial(_finish, output, batch)


def _finish(output: Any, encoded: EncodedBatch) -> DecodedBatch:
    """uint8 [n, K, S, S, 3] -> [B, 3, S, S]: crops in the order of the batch, mirrored where the photo is smaller."""
    crops = torch.from_dlpack(output.as_tensor())
    # With numpy on a CPU: PyTorch shares even a copy out among threads, which then spin where DALI's want to decode.
    on_cpu = crops.device.type == "cpu"
    pixels: Any = crops.flatten(0, 1)
    if on_cpu:
        pixels = pixels.numpy()
    order = encoded.order
    if len(order) != len(pixels) or (order != np.arange(len(order))).any():
        pixels = pixels[order]
    shapes = encoded.crop_shapes[order // crops.shape[1]]
    for sample in np.flatnonzero((shapes < encoded.plan.crop.size).any(1)).tolist():
        height, width = shapes[sample].tolist()
        pixels[sample] = mirror_pad(pixels[sample][:height, :width], encoded.plan.crop.size, axes=(0, 1))[0]
    if on_cpu:
        pixels = torch.from_numpy(pixels)
    return DecodedBatch(Batch.of(encoded.plan, pixels.permute(0, 3, 1, 2)), encoded.unreadable)


def _build_pipeline(
    *, batch_size: int, crops_per_image: int, threads: int, prefetch: int, device_id: int | None
) -> Any:
    """Return a built pipeline for CPU or GPU decoding, fed by ``feed_input`` with the inputs of an ``EncodedBatch``.

    Of each photo (encoded uint8 [bytes]) only the box (anchor and shape int32 [2], rows first) is decoded, and
    ``crops_per_image`` crops are cut out of it (anchors within the box int32 [K, 2], one shape int32 [2] for all).
    The output is uint8 [n, K, S, S, 3] for n photos, where smaller crops are filled with zeros to their ``squares``,
    (S, S) int32.

    Args:
        device_id: the GPU that decodes; None decodes on the CPU.
    """
    decoder = "cpu" if device_id is None else "mixed"

    # The dynamic executor counts references to its outputs, so that they can be handed on without a copy.
    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,
    )
    def crops() -> Any:
        # The loader keeps a batch's photos until its crops are there.
        photos = fn.external_source(name="photos", dtype=types.UINT8, ndim=1, no_copy=True)
        box_anchors = fn.external_source(name="box_anchors", dtype=types.INT32, ndim=1)
        box_shapes = fn.external_source(name="box_shapes", dtype=types.INT32, ndim=1)
        boxes = fn.decoders.image_slice(
            photos,
            box_anchors,
            box_shapes,
            axes=[0, 1],
            device=decoder,
            output_type=types.RGB,
            adjust_orientation=False,  # as stored, like the other loader
            jpeg_fancy_upsampling=True,  # the GPU decoder's chroma as the CPU's
        )
        squares = fn.external_source(name="squares", dtype=types.INT32, ndim=1)
        if crops_per_image == 1:
            stacked = fn.expand_dims(boxes, axes=[0])
        else:
            crop_anchors = fn.external_source(name="crop_anchors", dtype=types.INT32, ndim=2)
            crop_shapes = fn.external_source(name="crop_shapes", dtype=types.INT32, ndim=1)
            cut = [fn.slice(boxes, crop_anchors[k], crop_shapes, axes=[0, 1]) for k in range(crops_per_image)]
            stacked = fn.stack(*cut)
        return fn.pad(stacked, axes=[1, 2], shape=squares, fill_value=0)  # [K, h, w, 3] -> [K, S, S, 3]

    pipeline = crops()
    pipeline.build()
    return pipeline
