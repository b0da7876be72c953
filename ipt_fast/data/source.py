"""From a planned batch to its crops: read, decode the region, pad; a photo gone bad is replaced and reported."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import TypeVar

import numpy as np

from ipt_fast.data.check import check_image
from ipt_fast.data.decode import decode_rows
from ipt_fast.data.index_file import ImageEntry
from ipt_fast.data.plan import BatchPlan, CropPlan
from ipt_fast.io.images import DECODE_ERRORS
from ipt_fast.io.mirror import mirror_pad
from ipt_fast.io.scan import MEMBER

T = TypeVar("T")

_PLAIN = frozenset((("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB")))
# Notes that do not change how the pixels are decoded.
_HARMLESS_NOTES = frozenset(("gray", "exif-rotated", "renamed"))
# Substitutes tried for one sample before the data as a whole counts as gone.
_MAX_ATTEMPTS = 16


class BadPhotoError(Exception):
    """A photo that was fine when it was indexed cannot be used now. Holds its path and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class PhotoTable:
    """The photos trained on, as a few arrays: millions of them cost little and workers share the pages."""

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
        # Decoded alike by every decoder; what is not goes through our own.
        self.plain = np.array([_is_plain(entry) for entry in entries], bool)

    def __len__(self) -> int:
        return len(self.widths)

    def path(self, image: int) -> str:
        start = int(self._ends[image - 1]) if image else 0
        return os.fsdecode(self._names[start : int(self._ends[image])].tobytes())

    def mode(self, image: int) -> str:
        return self._mode_names[self._modes[image]]

    def fingerprint(self) -> str:
        """Tells whether a checkpoint's photos are these; moved folders with the same photos in them are."""
        digest = hashlib.sha256()
        for array in (self.widths, self.heights, self.sizes):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def read(self, image: int) -> bytes:
        """The photo's bytes; a file that changed since it was indexed is checked again as a whole.

        Raises:
            BadPhotoError: it is gone, cannot be read, or is no longer the photo that was indexed.
        """
        path = self.path(image)
        offset = int(self._offsets[image])
        try:
            with open(path.split(MEMBER)[0] if offset >= 0 else path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                data = os.pread(file.fileno(), int(self.sizes[image]), offset) if offset >= 0 else file.readall()
        except OSError as error:
            raise BadPhotoError(path, error.strerror or str(error)) from error
        if len(data) != self.sizes[image] or status.st_mtime_ns != self._mtimes[image]:
            finding = check_image(data, path, 1)
            if finding.verdict != "ok":
                raise BadPhotoError(path, f"changed since it was indexed, now {finding.reason}")
            if (finding.width, finding.height) != (self.widths[image], self.heights[image]):
                raise BadPhotoError(path, "changed since it was indexed, now of another size; index again")
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
            raise BadPhotoError(path, error.strerror or str(error)) from error
        return memory if done == size else np.frombuffer(self.read(image), np.uint8)


def _is_plain(entry: ImageEntry) -> bool:
    return (entry.format, entry.mode) in _PLAIN and _HARMLESS_NOTES.issuperset(entry.notes)


class CropSource:
    """The crops of planned batches, on the CPU, without any loader around it. Keeps no state but the two tables."""

    def __init__(self, table: PhotoTable, plan: CropPlan) -> None:
        self.table = table
        self.plan = plan

    def crops(self, batch: BatchPlan) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Crops uint8 [B, 3, S, S], channels last in memory; (path, reason) of each sample whose photo was replaced."""
        out = np.empty((len(batch.images), batch.size, batch.size, 3), np.uint8)
        bad: list[tuple[str, str]] = []
        for image, group in groupby(range(len(batch.images)), key=lambda sample: batch.images[sample]):
            samples = list(group)  # crops of one photo lie side by side, so that one decode serves them
            try:
                self._cut(batch, int(image), samples, batch.tops[samples], batch.lefts[samples], out)
            except BadPhotoError as error:
                for sample in samples:
                    bad.append((error.path, error.reason))
                    self.replace(batch, sample, partial(self._cut_one, batch, sample, out))
        return out.transpose(0, 3, 1, 2), bad

    def _substitute(self, batch: BatchPlan, sample: int, attempt: int) -> tuple[int, int, int]:
        """(image, top, left) to take where the planned photo is bad: another photo, drawn from the plan's hash."""
        image = self.plan.substitute(batch.epoch, int(batch.places[sample]), attempt)
        tops, lefts = self.plan.anchors(
            batch.task,
            batch.epoch,
            batch.places[sample : sample + 1],
            self.table.heights[image : image + 1],
            self.table.widths[image : image + 1],
        )
        return image, int(tops[0]), int(lefts[0])

    def replace(self, batch: BatchPlan, sample: int, take: Callable[[int, int, int], T]) -> T:
        """What ``take(image, top, left)`` makes of the first substitute for that sample that is not bad as well.

        Raises:
            RuntimeError: none of many can be read.
        """
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return take(*self._substitute(batch, sample, attempt))
            except BadPhotoError as error:
                last = error
        raise RuntimeError(
            f"{_MAX_ATTEMPTS} photos in a row cannot be read, the last one {last}; are the data still there?"
        )

    def _cut_one(self, batch: BatchPlan, sample: int, out: np.ndarray, image: int, top: int, left: int) -> None:
        self._cut(batch, image, [sample], np.array([top]), np.array([left]), out)

    def _cut(
        self, batch: BatchPlan, image: int, samples: list[int], tops: np.ndarray, lefts: np.ndarray, out: np.ndarray
    ) -> None:
        """Decode one photo as far down as needed and write its crops to their places in the batch."""
        table, size = self.table, batch.size
        data = table.read(image)
        try:
            pixels = decode_rows(data, int(tops.max()) + size, table.mode(image))
        except DECODE_ERRORS as error:
            raise BadPhotoError(table.path(image), str(error)) from error
        if (
            pixels.shape[0] < min(int(tops.max()) + size, table.heights[image])
            or pixels.shape[1] != table.widths[image]
        ):
            raise BadPhotoError(table.path(image), "decodes to another size than it was indexed with; index again")
        for sample, top, left in zip(samples, tops, lefts, strict=True):
            # The rows handed over may reach below the photo's wanted ones, never below the photo itself.
            out[sample] = mirror_pad(pixels[top : top + size, left : left + size], size, axes=(0, 1))[0]
