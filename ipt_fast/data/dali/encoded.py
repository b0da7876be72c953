"""A planned batch as DALI takes it: encoded photos, the boxes to decode, and the crops to cut out of them.

Several threads read. Unreadable photos are replaced here, by the same substitutes as the PyTorch loader takes, because
a damaged file would cost DALI the whole batch.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from ipt_fast.data.plan import BatchPlan
from ipt_fast.data.source import CropSource, photos_of

# Threads that read files; decoding is DALI's.
_READERS = 4
# Memory for a batch of photos is made this much larger than the first one needs, so that later ones fit too.
_SPARE = 1.25


@dataclass(frozen=True)
class EncodedBatch:
    """n photos for B crops, K a photo at most. ``order`` [B] finds each crop among the n * K.

    ``inputs``: what the pipeline is fed, by the names of its inputs; arrays are int32, rows before columns.
    """

    plan: BatchPlan
    inputs: dict[str, Sequence[np.ndarray] | np.ndarray]
    crop_shapes: np.ndarray  # [n, 2]
    order: np.ndarray
    unreadable: list[tuple[str, str]]
    # What most of the photos lie in; may be used again when they are.
    memory: np.ndarray


@dataclass(frozen=True)
class _Photo:
    """One photo and its k crops, samples of the batch, within the box: the smallest rectangle that holds all crops.

    Arrays are int32, rows before columns. ``box_anchor`` is the place of the box in what is ``encoded``.
    """

    samples: list[int]
    encoded: np.ndarray
    box_anchor: np.ndarray  # [2]
    box_shape: np.ndarray  # [2]
    crop_anchors: np.ndarray  # [k, 2]
    crop_shape: np.ndarray  # [2]


class Reader:
    """Encoded batches of one rank, from a step on."""

    def __init__(self, source: CropSource, step: int) -> None:
        self._source = source
        self._step = step
        self._pool = ThreadPoolExecutor(_READERS, "ipt-fast-read")
        self._memories: list[np.ndarray] = []

    def read(self) -> EncodedBatch:
        """Return the next batch; raises RuntimeError where an unreadable photo has no substitute that can be read."""
        plan, most = self._source.planned(self._step), self._source.plan.crops_per_image
        self._step += 1
        photos = [
            (image, part)
            for image, samples in photos_of(plan)
            # A photo that is drawn twice in a row has more crops than one decode makes.
            for part in (samples[start : start + most] for start in range(0, len(samples), most))
        ]
        memory, places = self._assign_memory(photos)

        def read_some(photos: list[tuple[int, list[int]]]) -> list[tuple[_Photo, tuple[str, str] | None]]:
            return list(self._source.take(plan, photos, partial(self._load, plan.crop.size, places)))

        taken = chain(*self._pool.map(read_some, [photos[part::_READERS] for part in range(_READERS)]))
        return self._arrange(plan, sorted(taken, key=lambda item: item[0].samples), memory)

    def done_with(self, batch: EncodedBatch) -> None:
        """Give back the memory of that batch, whose photos are not needed any more."""
        self._memories.append(batch.memory)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _assign_memory(
        self, photos: list[tuple[int, list[int]]]
    ) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
        """Memory for a batch, and each photo's part of it, all of them in a row: (image, first sample) -> uint8."""
        memory = self._memories.pop() if self._memories else None
        ends = np.cumsum(self._source.photos.sizes[[image for image, _ in photos]])
        if memory is None or len(memory) < ends[-1]:
            memory = np.empty(int(ends[-1] * _SPARE), np.uint8)
        keys = [(image, samples[0]) for image, samples in photos]
        return memory, dict(zip(keys, np.split(memory, ends)[:-1], strict=True))

    def _load(
        self,
        size: int,
        places: dict[tuple[int, int], np.ndarray],
        image: int,
        samples: list[int],
        tops: np.ndarray,
        lefts: np.ndarray,
    ) -> _Photo:
        """Read the photo's bytes; what DALI would decode otherwise than we do is decoded here, just its box."""
        table = self._source.photos
        crop_shape = np.minimum(size, (table.heights[image], table.widths[image])).astype(np.int32)
        crop_anchors = np.stack([tops, lefts], 1).astype(np.int32)
        box_anchor = crop_anchors.min(0)
        box_shape = crop_anchors.max(0) + crop_shape - box_anchor
        if table.plain[image]:
            memory = places.get((image, samples[0]))  # a substitute has none
            encoded = table.read_into(image, memory if memory is not None else np.empty(table.sizes[image], np.uint8))
        else:
            (top, left), (bottom, right) = box_anchor, box_anchor + box_shape
            box = table.decode(image, int(bottom))[top:bottom, left:right]
            encoded = np.frombuffer(b"P6\n%d %d\n255\n" % (right - left, bottom - top) + box.tobytes(), np.uint8)
        place = box_anchor if table.plain[image] else np.zeros(2, np.int32)
        return _Photo(samples, encoded, place, box_shape, crop_anchors - box_anchor, crop_shape)

    def _arrange(
        self, plan: BatchPlan, taken: list[tuple[_Photo, tuple[str, str] | None]], memory: np.ndarray
    ) -> EncodedBatch:
        photos, k = [photo for photo, _ in taken], self._source.plan.crops_per_image
        crop_shapes = np.stack([photo.crop_shape for photo in photos])
        crop_anchors = np.zeros((len(photos), k, 2), np.int32)
        order = np.zeros(len(plan.images), np.int64)
        for row, photo in enumerate(photos):
            crop_anchors[row, : len(photo.samples)] = photo.crop_anchors
            order[photo.samples] = row * k + np.arange(len(photo.samples))
        inputs: dict[str, Sequence[np.ndarray] | np.ndarray] = {
            "photos": [photo.encoded for photo in photos],
            "box_anchors": np.stack([photo.box_anchor for photo in photos]),
            "box_shapes": np.stack([photo.box_shape for photo in photos]),
            "squares": np.full((len(photos), 2), plan.crop.size, np.int32),
        }
        if k > 1:  # else the box is the crop
            inputs |= {"crop_anchors": crop_anchors, "crop_shapes": crop_shapes}
        unreadable = [replaced for _, replaced in taken if replaced is not None]
        return EncodedBatch(plan, inputs, crop_shapes, order, unreadable, memory)
