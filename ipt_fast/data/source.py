"""From a planned batch to its crops: read, decode the region, pad; an unreadable photo is replaced and reported."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ipt_fast.data.decode import decode_rows
from ipt_fast.data.index import ImageEntry, check_image
from ipt_fast.data.plan import BatchPlan, CropPlan
from ipt_fast.io.images import DECODE_ERRORS
from ipt_fast.io.mirror import mirror_pad
from ipt_fast.io.scan import MEMBER, ImageFile

T = TypeVar("T")

_PLAIN = frozenset((("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB")))
# Notes that do not change how the pixels are decoded.
_HARMLESS_NOTES = frozenset(("gray", "exif-rotated", "renamed"))
# Substitutes tried for one sample before the data as a whole counts as lost.
_MAX_ATTEMPTS = 16


class Batch(NamedTuple):
    """One rank's part of a batch.

    ``gt`` uint8 [B, 3, rS, rS], the clean crops; ``lq`` uint8 [B, 3, S, S], their degraded partners, or None where
    ``degrade`` is to make them; ``seeds`` int64 [B], one a sample, for ``degrade``.

    Without ``lq`` the three channels of a pixel lie side by side in memory, as decoders leave them: ``degrade`` puts
    the channels apart while it makes floats of them. Pairs are contiguous, as networks take them.
    """

    gt: Tensor
    lq: Tensor | None
    task: str
    seeds: Tensor
    epoch: int
    step: int

    @classmethod
    def of(cls, plan: BatchPlan, gt: Tensor, lq: Tensor | None = None) -> "Batch":
        """Return the batch of a plan, with its decoded crops."""
        return cls(gt, lq, plan.crop.task, torch.from_numpy(plan.seeds), plan.epoch, plan.step)


class DecodedBatch(NamedTuple):
    """A batch on its way to the training.

    ``unreadable``: (path, reason) of each sample whose photo was replaced; ``seconds`` that decoding took on one core,
    0 where it is not known.
    """

    batch: Batch
    unreadable: list[tuple[str, str]]
    seconds: float = 0.0


class UnreadablePhotoError(Exception):
    """A photo that was fine when it was indexed cannot be used now. Holds its path and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class PhotoTable:
    """The photos trained on, as a few arrays: millions of them cost little and workers share the pages.

    ``widths``, ``heights`` (pixels) and ``sizes`` (bytes) are [n_images]; ``plain`` tells the photos that every decoder
    decodes alike: the others go through our own.
    """

    def __init__(self, entries: Sequence[ImageEntry]) -> None:
        paths = [os.fsencode(entry.path) for entry in entries]
        self._names = np.frombuffer(b"".join(paths), np.uint8)
        self._ends = np.cumsum([len(path) for path in paths], dtype=np.int64)
        self.widths = np.array([entry.width for entry in entries], np.int32)
        self.heights = np.array([entry.height for entry in entries], np.int32)
        self.sizes = np.array([entry.size_bytes for entry in entries], np.int64)
        self._mtimes = np.array([entry.mtime_ns for entry in entries], np.int64)
        self._offsets = np.array([entry.offset for entry in entries], np.int64)
        self._mode_names = sorted({entry.mode for entry in entries})
        self._modes = np.array([self._mode_names.index(entry.mode) for entry in entries], np.int16)
        self.plain = np.array([_is_plain(entry) for entry in entries], bool)

    def __len__(self) -> int:
        return len(self.widths)

    def path(self, image: int) -> str:
        """Return the photo's path, ``shard.tar::member`` in a shard."""
        start = int(self._ends[image - 1]) if image else 0
        return os.fsdecode(self._names[start : int(self._ends[image])].tobytes())

    def mode(self, image: int) -> str:
        """Return Pillow's name for the photo's kind of pixels."""
        return self._mode_names[self._modes[image]]

    def fingerprint(self) -> str:
        """Return what tells whether a checkpoint's photos are these; moved folders with the same photos in them are."""
        digest = hashlib.sha256()
        for array in (self.widths, self.heights, self.sizes):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def read(self, image: int) -> bytes:
        """Return the photo's bytes; a file that changed since it was indexed is checked again as a whole.

        Raises:
            UnreadablePhotoError: it is gone, cannot be read, or is no longer the photo that was indexed.
        """
        path = self.path(image)
        offset = int(self._offsets[image])
        try:
            with open(path.split(MEMBER)[0] if offset >= 0 else path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                data = os.pread(file.fileno(), int(self.sizes[image]), offset) if offset >= 0 else file.readall()
        except OSError as error:
            raise UnreadablePhotoError(path, error.strerror or str(error)) from error
        if len(data) != self.sizes[image] or status.st_mtime_ns != self._mtimes[image]:
            finding = check_image(ImageFile(path, len(data), status.st_mtime_ns), data, 1)
            if finding.verdict != "ok":
                raise UnreadablePhotoError(path, f"changed since it was indexed, now {finding.reason}")
            if (finding.width, finding.height) != (self.widths[image], self.heights[image]):
                raise UnreadablePhotoError(path, "changed since it was indexed, now of another size; index again")
        return data

    def read_into(self, image: int, memory: np.ndarray) -> np.ndarray:
        """``read`` as uint8 [size of the photo], into ``memory`` of that size where the file is as it was indexed.

        Memory that is used again saves the page faults of new memory, which cost more than the reading.
        """
        path = self.path(image)
        offset, size = int(self._offsets[image]), int(self.sizes[image])
        view, done = memoryview(memory.data), 0
        try:
            with open(path.split(MEMBER)[0] if offset >= 0 else path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if status.st_mtime_ns == self._mtimes[image] and (offset >= 0 or status.st_size == size):
                    file.seek(max(offset, 0))
                    while part := file.readinto(view[done:]):
                        done += part
        except OSError as error:
            raise UnreadablePhotoError(path, error.strerror or str(error)) from error
        return memory if done == size else np.frombuffer(self.read(image), np.uint8)

    def decode(self, image: int, rows: int) -> np.ndarray:
        """Decode the photo down to the row ``rows`` or its end, or further: uint8 [at least that, W, 3].

        Raises:
            UnreadablePhotoError: as ``read``, or it cannot be decoded.
        """
        data = self.read(image)
        try:
            pixels = decode_rows(data, rows, self.mode(image))
        except DECODE_ERRORS as error:
            raise UnreadablePhotoError(self.path(image), str(error)) from error
        if len(pixels) < min(rows, self.heights[image]) or pixels.shape[1] != self.widths[image]:
            raise UnreadablePhotoError(
                self.path(image), "decodes to another size than it was indexed with; index again"
            )
        return pixels


def _is_plain(entry: ImageEntry) -> bool:
    return (entry.format, entry.mode) in _PLAIN and _HARMLESS_NOTES.issuperset(entry.notes)


def photos_of(batch: BatchPlan) -> Iterator[tuple[int, list[int]]]:
    """Yield (image, its samples); crops of one photo lie side by side, so that one decode serves them."""
    for image, samples in groupby(range(len(batch.images)), key=lambda sample: batch.images[sample]):
        yield int(image), list(samples)


class CropSource(Dataset):
    """One rank's crops, on the CPU, without any loader around them. Keeps no state but plan and tables.

    Args:
        plan: drawn on the sizes of ``photos``.
        photos: clean photos; with ``partners`` the degraded ones.
        partners: for pairs, the clean photo of each, ``scale`` times as large; cropped at the same places.
    """

    def __init__(
        self,
        plan: CropPlan,
        photos: PhotoTable,
        rank: int,
        world_size: int,
        partners: PhotoTable | None = None,
        scale: int = 1,
    ) -> None:
        self.plan = plan
        self.photos = photos
        self.paired = partners is not None  # whether batches bring their ``lq``
        self.batch_size = plan.global_batch // world_size
        self._rank = rank
        self._world_size = world_size
        self._sets = [(photos, 1)] if partners is None else [(photos, 1), (partners, scale)]

    def planned(self, step: int) -> BatchPlan:
        """Return what this rank gets in a global step."""
        return self.plan.batch(step, self._rank, self._world_size)

    def __getitem__(self, step: int) -> DecodedBatch:
        """Return the crops of a global step, and the photos that had to be replaced.

        Raises:
            RuntimeError: no substitute for an unreadable photo could be read either.
        """
        started = time.perf_counter()
        batch = self.planned(step)
        B, S = len(batch.images), batch.crop.size
        crops = [np.empty((B, scale * S, scale * S, 3), np.uint8) for _, scale in self._sets]
        taken = self.take(batch, photos_of(batch), partial(self._cut, crops))
        unreadable = [replaced for _, replaced in taken if replaced is not None]
        planes = [torch.from_numpy(part.transpose(0, 3, 1, 2)) for part in crops]  # [B, 3, S, S], channels last
        if self.paired:
            lq, gt = (part.contiguous() for part in planes)
            decoded = Batch.of(batch, gt, lq)
        else:
            decoded = Batch.of(batch, planes[0])
        return DecodedBatch(decoded, unreadable, time.perf_counter() - started)

    def take(
        self, batch: BatchPlan, photos: Iterable[tuple[int, list[int]]], load: Callable[..., T]
    ) -> Iterator[tuple[T, tuple[str, str] | None]]:
        """Yield what ``load(image, samples, tops, lefts)`` makes of photos of the batch.

        A photo that cannot be read is replaced, for each of its samples by another; then its (path, reason) come along.

        Raises:
            RuntimeError: none of many substitutes can be read.
        """
        for image, samples in photos:
            try:
                yield load(image, samples, batch.tops[samples], batch.lefts[samples]), None
            except UnreadablePhotoError as error:
                for sample in samples:
                    yield self._substitute(batch, sample, load), (error.path, error.reason)

    def _substitute(self, batch: BatchPlan, sample: int, load: Callable[..., T]) -> T:
        for attempt in range(_MAX_ATTEMPTS):
            image, top, left = self.plan.substitute(batch, sample, attempt)
            try:
                return load(image, [sample], np.array([top]), np.array([left]))
            except UnreadablePhotoError as error:
                last = error
        raise RuntimeError(
            f"{_MAX_ATTEMPTS} photos in a row cannot be read, the last one {last}; are the data still there?"
        )

    def _cut(
        self, crops: list[np.ndarray], image: int, samples: list[int], tops: np.ndarray, lefts: np.ndarray
    ) -> None:
        """Decode one photo (both of a pair) as far down as needed; write its crops to their places in the batch."""
        for (table, scale), out in zip(self._sets, crops, strict=True):
            size = out.shape[1]
            pixels = table.decode(image, scale * int(tops.max()) + size)
            for sample, top, left in zip(samples, tops, lefts, strict=True):
                y, x = scale * top, scale * left
                # The rows handed over may reach below the photo's wanted ones, never below the photo itself.
                out[sample] = mirror_pad(pixels[y : y + size, x : x + size], size, axes=(0, 1))[0]

    def identity(self) -> dict[str, Any]:
        """Return what a state must have in common with this run to be resumed, in plain values."""
        plan = self.plan
        return {
            "seed": plan.seed,
            "global_batch": plan.global_batch,
            "patch_size": plan.patch_size,
            "crops_per_image": plan.crops_per_image,
            "tasks": [crop.task for crop in plan.crops],
            "photos": self.photos.fingerprint(),
        }
