"""A planned batch as DALI takes it: encoded photos, the boxes to decode, and the crops to cut out of them.

Several threads read. Unreadable photos are replaced here, by the same substitutes as the PyTorch loader takes, because
a damaged file would cost DALI the whole batch.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np

from ipt_fast.data.decode import DECODE_ERRORS, decode_region
from ipt_fast.data.plan import BatchPlan
from ipt_fast.data.source import CropSource, UnreadablePhotoError, photos_of

# Threads that read files; decoding is DALI's.
_READERS = 4
# Memory for a batch of photos is made this much larger than the first one needs, so that later ones fit too.
_SPARE = 1.25


@dataclass(frozen=True)
class EncodedBatch:
    """n photos for B crops. Arrays are int32, rows before columns; ``order`` [B] finds each crop among the n * K."""

    plan: BatchPlan
    photos: list[np.ndarray]
    box_anchors: np.ndarray  # [n, 2]
    box_shapes: np.ndarray  # [n, 2]
    crop_anchors: np.ndarray  # [n, K, 2], within the box
    crop_shapes: np.ndarray  # [n, 2]
    squares: np.ndarray  # [n, 2], what crops are filled up to
    order: np.ndarray
    unreadable: list[tuple[str, str]]
    # What most of the photos lie in; may be used again when they are.
    memory: np.ndarray

    def inputs(self) -> dict[str, Sequence[np.ndarray] | np.ndarray]:
        """Return what the pipeline is fed, by the names of its inputs."""
        inputs = {"box_anchors": self.box_anchors, "box_shapes": self.box_shapes, "squares": self.squares}
        if self.crop_anchors.shape[1] > 1:  # else the box is the crop
            inputs |= {"crop_anchors": self.crop_anchors, "crop_shapes": self.crop_shapes}
        return {"photos": self.photos, **inputs}


@dataclass
class _Cut:
    """Crops of one photo: (sample in the batch, top, left) each; ``memory`` for its bytes, where there is some."""

    image: int
    samples: list[int]
    tops: list[int]
    lefts: list[int]
    memory: np.ndarray | None = None


def encode_batch(
    source: CropSource, plan: BatchPlan, pool: ThreadPoolExecutor | None = None, memory: np.ndarray | None = None
) -> EncodedBatch:
    """Read the photos of a batch and say what to decode of each.

    Args:
        memory: uint8, that of an earlier batch which is done with; new one where it is too small.

    Raises:
        RuntimeError: no substitute for an unreadable photo could be read either.
    """
    cuts = []
    most = source.plan.crops_per_image
    for image, samples in photos_of(plan):
        # A photo that is drawn twice in a row has more crops than one decode makes.
        for part in (samples[start : start + most] for start in range(0, len(samples), most)):
            cuts.append(_Cut(image, part, plan.tops[part].tolist(), plan.lefts[part].tolist()))
    memory = _assign_memory(source, cuts, memory)
    if pool is None:
        read = [_read_all(source, plan, cuts)]
    else:
        parts = [cuts[part::_READERS] for part in range(_READERS)]
        read = list(pool.map(lambda part: _read_all(source, plan, part), parts))
    pairs = sorted((pair for done, _ in read for pair in done), key=lambda pair: pair[0].samples[0])
    unreadable = [item for _, part in read for item in part]
    return _arrange(source, plan, pairs, unreadable, memory)


def _assign_memory(source: CropSource, cuts: list[_Cut], memory: np.ndarray | None) -> np.ndarray:
    """Give each photo its part of the memory, all of them in a row."""
    ends = np.cumsum(source.photos.sizes[[cut.image for cut in cuts]])
    if memory is None or len(memory) < ends[-1]:
        memory = np.empty(int(ends[-1] * _SPARE), np.uint8)
    start = 0
    for cut, end in zip(cuts, ends.tolist(), strict=True):
        cut.memory, start = memory[start:end], end
    return memory


def _read_all(
    source: CropSource, plan: BatchPlan, cuts: list[_Cut]
) -> tuple[list[tuple[_Cut, np.ndarray]], list[tuple[str, str]]]:
    done: list[tuple[_Cut, np.ndarray]] = []
    unreadable: list[tuple[str, str]] = []
    for cut in cuts:
        try:
            done.append((cut, _photo(source, plan, cut)))
        except UnreadablePhotoError as error:
            for sample in cut.samples:
                unreadable.append((error.path, error.reason))
                done.append(source.replace(plan, sample, partial(_substituted, source, plan, sample)))
    return done, unreadable


def _substituted(
    source: CropSource, plan: BatchPlan, sample: int, image: int, top: int, left: int
) -> tuple[_Cut, np.ndarray]:
    cut = _Cut(image, [sample], [top], [left])
    return cut, _photo(source, plan, cut)


def _photo(source: CropSource, plan: BatchPlan, cut: _Cut) -> np.ndarray:
    """The encoded photo, uint8 [bytes]. What DALI would decode otherwise than we do goes through our own decoder."""
    table = source.photos
    if not table.plain[cut.image]:
        data = table.read(cut.image)
        anchor, shape = _box(source, plan, cut)
        try:
            region = decode_region(data, *anchor, *shape, table.mode(cut.image))
        except DECODE_ERRORS as error:
            raise UnreadablePhotoError(table.path(cut.image), str(error)) from error
        return np.frombuffer(b"P6\n%d %d\n255\n" % (shape[1], shape[0]) + region.tobytes(), np.uint8)
    if cut.memory is not None:
        return table.read_into(cut.image, cut.memory)
    return np.frombuffer(table.read(cut.image), np.uint8)


def _box(source: CropSource, plan: BatchPlan, cut: _Cut) -> tuple[tuple[int, int], tuple[int, int]]:
    """Anchor and shape of the smallest rectangle that holds all crops of the photo."""
    height, width = _crop_shape(source, plan, cut.image)
    top, left = min(cut.tops), min(cut.lefts)
    return (top, left), (max(cut.tops) + height - top, max(cut.lefts) + width - left)


def _crop_shape(source: CropSource, plan: BatchPlan, image: int) -> tuple[int, int]:
    return min(plan.crop.size, int(source.photos.heights[image])), min(plan.crop.size, int(source.photos.widths[image]))


def _arrange(
    source: CropSource,
    plan: BatchPlan,
    pairs: list[tuple[_Cut, np.ndarray]],
    unreadable: list[tuple[str, str]],
    memory: np.ndarray,
) -> EncodedBatch:
    n, k = len(pairs), source.plan.crops_per_image
    box_anchors, box_shapes, crop_shapes = (np.zeros((n, 2), np.int32) for _ in range(3))
    crop_anchors = np.zeros((n, k, 2), np.int32)
    order = np.zeros(len(plan.images), np.int64)
    for row, (cut, _) in enumerate(pairs):
        anchor, shape = _box(source, plan, cut)
        box_anchors[row] = anchor if source.photos.plain[cut.image] else (0, 0)  # the others hold their box alone
        box_shapes[row] = shape
        crop_shapes[row] = _crop_shape(source, plan, cut.image)
        for place, (sample, top, left) in enumerate(zip(cut.samples, cut.tops, cut.lefts, strict=True)):
            crop_anchors[row, place] = top - anchor[0], left - anchor[1]
            order[sample] = row * k + place
    photos = [photo for _, photo in pairs]
    squares = np.full((n, 2), plan.crop.size, np.int32)
    return EncodedBatch(
        plan, photos, box_anchors, box_shapes, crop_anchors, crop_shapes, squares, order, unreadable, memory
    )


class Reader:
    """Encoded batches from a step on."""

    def __init__(self, source: CropSource, rank: int, world_size: int, step: int) -> None:
        self._source = source
        self._plans = (source.plan.batch(at, rank, world_size) for at in count(step))
        self._pool = ThreadPoolExecutor(_READERS, "ipt-fast-read")
        self._memories: list[np.ndarray] = []

    def read(self) -> EncodedBatch:
        """Return the next batch; raises RuntimeError where an unreadable photo has no substitute that can be read."""
        memory = self._memories.pop() if self._memories else None
        return encode_batch(self._source, next(self._plans), self._pool, memory)

    def done_with(self, batch: EncodedBatch) -> None:
        """Give back the memory of that batch, whose photos are not needed any more."""
        self._memories.append(batch.memory)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
