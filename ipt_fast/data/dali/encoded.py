"""A planned batch as DALI takes it: encoded photos, the boxes to decode, and the crops to cut out of them.

Several threads read. Unreadable photos are replaced here, by the same substitutes as the PyTorch loader takes, because
a damaged file would cost DALI the whole batch.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count

import numpy as np

from ipt_fast.data.decode import decode_region
from ipt_fast.data.plan import BatchPlan
from ipt_fast.data.source import CropSource, UnreadablePhotoError, photos_of
from ipt_fast.io.images import DECODE_ERRORS

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


@dataclass
class _Photo:
    """One photo and its crops: samples of the batch with their places.

    The box is the smallest rectangle that holds all crops. ``replaces``: (path, reason) of the photo planned.
    """

    image: int
    samples: list[int]
    tops: list[int]
    lefts: list[int]
    memory: np.ndarray | None = None
    replaces: tuple[str, str] | None = None
    encoded: np.ndarray = field(init=False)
    crop_shape: tuple[int, int] = field(init=False)
    box_anchor: tuple[int, int] = field(init=False)
    box_shape: tuple[int, int] = field(init=False)


class Reader:
    """Encoded batches of one rank, from a step on."""

    def __init__(self, source: CropSource, rank: int, world_size: int, step: int) -> None:
        self._source = source
        self._plans = (source.plan.batch(at, rank, world_size) for at in count(step))
        self._pool = ThreadPoolExecutor(_READERS, "ipt-fast-read")
        self._memories: list[np.ndarray] = []

    def read(self) -> EncodedBatch:
        """Return the next batch; raises RuntimeError where an unreadable photo has no substitute that can be read."""
        plan, most = next(self._plans), self._source.plan.crops_per_image
        photos = [
            _Photo(image, part, plan.tops[part].tolist(), plan.lefts[part].tolist())
            for image, samples in photos_of(plan)
            # A photo that is drawn twice in a row has more crops than one decode makes.
            for part in (samples[start : start + most] for start in range(0, len(samples), most))
        ]
        memory = self._assign_memory(photos)
        parts = self._pool.map(partial(self._load_all, plan), [photos[part::_READERS] for part in range(_READERS)])
        return self._arrange(plan, sorted(chain(*parts), key=lambda photo: photo.samples[0]), memory)

    def done_with(self, batch: EncodedBatch) -> None:
        """Give back the memory of that batch, whose photos are not needed any more."""
        self._memories.append(batch.memory)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _assign_memory(self, photos: list[_Photo]) -> np.ndarray:
        """Give each photo its part of a batch's memory, all of them in a row."""
        memory = self._memories.pop() if self._memories else None
        ends = np.cumsum(self._source.photos.sizes[[photo.image for photo in photos]])
        if memory is None or len(memory) < ends[-1]:
            memory = np.empty(int(ends[-1] * _SPARE), np.uint8)
        start = 0
        for photo, end in zip(photos, ends.tolist(), strict=True):
            photo.memory, start = memory[start:end], end
        return memory

    def _load_all(self, plan: BatchPlan, photos: list[_Photo]) -> list[_Photo]:
        loaded = []
        for photo in photos:
            try:
                loaded.append(self._load(plan, photo))
            except UnreadablePhotoError as error:
                for sample in photo.samples:
                    take = partial(self._load_substitute, plan, sample, (error.path, error.reason))
                    loaded.append(self._source.replace(plan, sample, take))
        return loaded

    def _load_substitute(
        self, plan: BatchPlan, sample: int, replaces: tuple[str, str], image: int, top: int, left: int
    ) -> _Photo:
        return self._load(plan, _Photo(image, [sample], [top], [left], replaces=replaces))

    def _load(self, plan: BatchPlan, photo: _Photo) -> _Photo:
        """Read the photo's bytes; what DALI would decode otherwise than we do is decoded here, just its box."""
        table, image, size = self._source.photos, photo.image, plan.crop.size
        photo.crop_shape = min(size, int(table.heights[image])), min(size, int(table.widths[image]))
        top, left = photo.box_anchor = min(photo.tops), min(photo.lefts)
        height, width = max(photo.tops) + photo.crop_shape[0] - top, max(photo.lefts) + photo.crop_shape[1] - left
        photo.box_shape = height, width
        if table.plain[image]:
            memory = photo.memory if photo.memory is not None else np.empty(table.sizes[image], np.uint8)
            photo.encoded = table.read_into(image, memory)
            return photo
        data = table.read(image)
        try:
            box = decode_region(data, top, left, height, width, table.mode(image))
        except DECODE_ERRORS as error:
            raise UnreadablePhotoError(table.path(image), str(error)) from error
        photo.encoded = np.frombuffer(b"P6\n%d %d\n255\n" % (width, height) + box.tobytes(), np.uint8)
        return photo

    def _arrange(self, plan: BatchPlan, photos: list[_Photo], memory: np.ndarray) -> EncodedBatch:
        n, k, plain = len(photos), self._source.plan.crops_per_image, self._source.photos.plain
        crop_shapes = np.array([photo.crop_shape for photo in photos], np.int32)
        crop_anchors = np.zeros((n, k, 2), np.int32)
        order = np.zeros(len(plan.images), np.int64)
        for row, photo in enumerate(photos):
            for place, (sample, top, left) in enumerate(zip(photo.samples, photo.tops, photo.lefts, strict=True)):
                crop_anchors[row, place] = top - photo.box_anchor[0], left - photo.box_anchor[1]
                order[sample] = row * k + place
        inputs: dict[str, Sequence[np.ndarray] | np.ndarray] = {
            "photos": [photo.encoded for photo in photos],
            # What was decoded here is its box alone.
            "box_anchors": np.array([photo.box_anchor if plain[photo.image] else (0, 0) for photo in photos], np.int32),
            "box_shapes": np.array([photo.box_shape for photo in photos], np.int32),
            "squares": np.full((n, 2), plan.crop.size, np.int32),
        }
        if k > 1:  # else the box is the crop
            inputs |= {"crop_anchors": crop_anchors, "crop_shapes": crop_shapes}
        unreadable = [photo.replaces for photo in photos if photo.replaces is not None]
        return EncodedBatch(plan, inputs, crop_shapes, order, unreadable, memory)
