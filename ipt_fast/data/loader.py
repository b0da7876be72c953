"""The loader's face: endless batches of clean crops, whatever decodes them, resumable at any batch."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ipt_fast.data.index import ImageIndex
from ipt_fast.data.plan import CropPlan, draw_share
from ipt_fast.data.source import CropSource, PhotoTable
from ipt_fast.data.types import Batch, DecodedBatch
from ipt_fast.io.images import silence_pillow_warnings
from ipt_fast.tasks import TASKS

# Bad photos named in full by stats(); all are counted.
_NAMED = 100


class CropLoader(ABC):
    """Iterating never ends: epochs follow each other. ``state_dict`` is the place of the next batch to be yielded.

    Attributes:
        batches_per_epoch: steps of one epoch, equal on all ranks.
        about: one line on which loader this is and why.
    """

    def __init__(self, source: CropSource, rank: int, world_size: int, about: str) -> None:
        self._source = source
        self._rank = rank
        self._world_size = world_size
        self._step = 0
        self._stream: Iterator[DecodedBatch] | None = None
        self._bad: dict[str, str] = {}
        self._bad_samples = 0
        self._batches = 0
        self._wait_seconds = 0.0
        # Since ``stats`` was last asked: batches, and what making them took.
        self._new_batches = 0
        self._new_seconds = 0.0
        self.about = about
        self.batches_per_epoch = source.plan.batches_per_epoch

    @abstractmethod
    def _open(self, step: int) -> Iterator[DecodedBatch]:
        """Start producing batches from that global step on, ahead of time where possible."""

    @abstractmethod
    def _shut(self, stream: Any) -> None:
        """Stop what ``_open`` started."""

    def __iter__(self) -> "CropLoader":
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        if self._stream is None:
            self._stream = self._open(self._step)
        plan, crops, bad, seconds = next(self._stream)
        for path, reason in bad:
            self._bad_samples += 1
            if path not in self._bad:
                self._bad[path] = reason
                warnings.warn(f"a photo went bad and is replaced: {path}: {reason}", stacklevel=2)
        self._step += 1
        self._batches += 1
        self._new_batches += 1
        self._new_seconds += seconds
        self._wait_seconds += time.perf_counter() - started
        return Batch(crops, None, plan.task, torch.from_numpy(plan.seeds), plan.epoch, plan.step)

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch not yet yielded (batches made ahead do not count), in plain values."""
        return {"step": self._step, "epoch": self._step // self.batches_per_epoch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where that state was taken, in the middle of an epoch or not.

        Raises:
            ValueError: the state was taken with another seed, global batch size, patch size, tasks or crops an image.
        """
        wanted = self._identity()
        differing = [key for key in wanted if key != "photos" and state.get(key) != wanted[key]]
        if differing:
            key = differing[0]
            raise ValueError(
                f"the loader's state was taken with {key}={state.get(key)!r}, this loader has {wanted[key]!r}; "
                "resume with the same settings (the global batch is batch_size times the number of ranks)"
            )
        if state["photos"] != wanted["photos"]:
            warnings.warn(
                "the photos have changed since this state was taken: training goes on at the same step, "
                "but in another order than an unbroken run",
                stacklevel=2,
            )
        self._stop()
        self._step = int(state["step"])

    def stats(self) -> dict[str, Any]:
        """Counts since the loader was made: ``batches``, ``wait_seconds`` (time the caller waited in ``next``),
        ``decode_ms`` (mean time of one core to decode and cut a batch, since this was last asked: in a worker of the
        PyTorch loader, reading included; of all of DALI's threads together, on Linux, else None; what a GPU decodes
        is not in it), ``bad_samples`` (crops replaced because their photo went bad), ``bad_files`` (number of
        such photos) and ``bad_paths`` (path -> reason of the first 100)."""
        batches, self._new_batches = self._new_batches, 0
        seconds = self._decoding_seconds() if batches else None
        return {
            "batches": self._batches,
            "wait_seconds": self._wait_seconds,
            "decode_ms": None if seconds is None else 1e3 * seconds / batches,
            "bad_samples": self._bad_samples,
            "bad_files": len(self._bad),
            "bad_paths": dict(list(self._bad.items())[:_NAMED]),
        }

    def _decoding_seconds(self) -> float | None:
        """Time of one core to decode, since this was last asked; None where it is not known."""
        seconds, self._new_seconds = self._new_seconds, 0.0
        return seconds

    def close(self) -> None:
        """Stop workers. The loader may be iterated again and goes on where it was."""
        self._stop()

    def _stop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._shut(stream)

    def _identity(self) -> dict[str, Any]:
        plan = self._source.plan
        return {
            "seed": plan.seed,
            "global_batch": plan.global_batch,
            "patch_size": plan.patch_size,
            "crops_per_image": plan.crops_per_image,
            "tasks": list(plan.tasks),
            "photos": self._source.table.fingerprint(),
        }


def make_loader(
    index: ImageIndex,
    *,
    loader: str = "auto",
    tasks: Sequence[str] = TASKS,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    patch_size: int = 48,
    crops_per_image: int = 1,
    workers: int | None = None,
    prefetch: int = 2,
    data_fraction: float = 1.0,
    device: str | torch.device | None = None,
) -> CropLoader:
    """A loader of clean crops for the tasks, from the usable photos of an index.

    Batches depend on ``seed`` and on the global batch size (``batch_size * world_size``) alone: not on the number of
    workers, the number of ranks or the kind of loader. An epoch is ``ceil(photos * crops_per_image / global batch)``
    steps; where the crops of an epoch do not fill its last batch (or a set is smaller than one batch), further crops
    of photos drawn anew fill it.

    Args:
        loader: "dali", "torch", or "auto" (DALI where it is installed).
        batch_size: crops a rank.
        workers: processes (torch) or threads (DALI); None for as many as there are cores for this rank. 0 decodes in
            this process (torch only).
        prefetch: batches made ahead, a worker (torch) or a pipeline (DALI: two of them on a CPU, one on a GPU).
        device: where DALI decodes, "cuda" or "cpu"; None for the GPU where there is one.
        data_fraction: share of the photos to use, the same ones whatever the seed (the paper's Figure 6).

    Raises:
        ValueError: a setting is out of range, or the index holds no usable image.
        ModuleNotFoundError: ``loader="dali"`` without DALI; the message names the extra to install.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} and world_size {world_size}; rank has to lie in 0..{world_size - 1}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it has to be at least 1")
    if prefetch < 1:
        raise ValueError(f"prefetch is {prefetch}; it has to be at least 1")
    if loader not in ("auto", "dali", "torch"):
        raise ValueError(f'loader is {loader!r}; it has to be "auto", "dali" or "torch"')
    if not index.usable:
        raise ValueError("the index holds no usable image; see its refusals")
    silence_pillow_warnings()
    table = PhotoTable([index.usable[i] for i in draw_share(len(index.usable), data_fraction)])
    plan = CropPlan(
        table.widths, table.heights, tuple(tasks), batch_size * world_size, seed, patch_size, crops_per_image
    )
    source = CropSource(table, plan)
    from ipt_fast.data.dali.loader import DaliLoader, why_not
    from ipt_fast.data.torch_loader import TorchLoader

    missing = why_not() if loader != "torch" else None
    if loader == "dali" and missing:
        raise ModuleNotFoundError(f'loader="dali" cannot serve: {missing}; or use loader="torch"')
    if loader == "torch" or missing:
        return TorchLoader(source, rank, world_size, workers=workers, prefetch=prefetch, why=missing or "")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return DaliLoader(source, rank, world_size, workers=workers, prefetch=prefetch, device=where)
