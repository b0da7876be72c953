"""Which crop of which photo, under which task, at which place of which batch: a pure function of seed and position.

Nothing here knows of workers, ranks or loaders, so that none of them can change what is trained on. Everything is
drawn by hashing counters (splitmix64), which keeps the numbers the same on every machine and in every numpy.

An epoch visits each photo once, with ``crops_per_image`` crops side by side. It has as many global batches as hold
all crops; the last one is filled with further crops, of photos in the order of a second shuffle (for a set smaller
than one batch: as many shuffles as it takes). So each batch is full and each epoch has the same number of steps.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ipt_fast.tasks import get_task

# Streams of random numbers: what a hash is drawn for.
_TASK, _SHUFFLE, _TOP, _LEFT, _SEED, _SHARE, _SUBSTITUTE, _ORDER = range(1, 9)
# Low-resolution pixels around an SR patch that exact bicubic needs on every side.
SR_MARGIN = 2


def _mix(*parts: int | np.ndarray) -> np.ndarray:
    """Hash integers (or arrays of them, broadcast) to uint64: splitmix64's finaliser after each part."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            value = np.asarray(part, np.int64).astype(np.uint64)
            state = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def _below(bound: np.ndarray, *parts: int | np.ndarray) -> np.ndarray:
    """Uniform integers in [0, bound), from the hash of the parts."""
    uniform = (_mix(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (uniform * bound).astype(np.int64)


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, turn: int, n_images: int) -> np.ndarray:
    order = np.argsort(_mix(seed, _SHUFFLE, epoch, turn, np.arange(n_images)), kind="stable")
    order.setflags(write=False)
    return order


def draw_share(n_images: int, fraction: float) -> np.ndarray:
    """The photos of a fixed share, ascending. The same whatever the training seed; a smaller share lies in a larger."""
    if not 0 < fraction <= 1:
        raise ValueError(f"data_fraction is {fraction}; it has to be above 0 and at most 1")
    count = max(1, round(fraction * n_images))
    return np.sort(np.argsort(_mix(0, _SHARE, np.arange(n_images)), kind="stable")[:count])


def draw_order(n_images: int) -> np.ndarray:
    """A fixed shuffle of the photos: the order in which shards hold them."""
    return np.argsort(_mix(0, _ORDER, np.arange(n_images)), kind="stable")


def crop_size(task: str, patch_size: int) -> int:
    """Side of the clean crop in pixels: SR crops carry the margin that exact bicubic needs."""
    scale = get_task(task).scale
    return (patch_size + 2 * SR_MARGIN) * scale if scale > 1 else patch_size


@dataclass(frozen=True)
class BatchPlan:
    """One rank's part of one global batch. Arrays are int64 [B]; tops and lefts are pixels of the stored image."""

    step: int
    epoch: int
    task: str
    size: int
    images: np.ndarray
    tops: np.ndarray
    lefts: np.ndarray
    seeds: np.ndarray
    # Places of the samples in the epoch, from which substitutes for unreadable photos are found.
    places: np.ndarray


@dataclass(frozen=True, eq=False)
class CropPlan:
    """The plan of a whole run. ``widths`` and ``heights`` [n_images] are those of the photos trained on."""

    widths: np.ndarray
    heights: np.ndarray
    tasks: tuple[str, ...]
    global_batch: int
    seed: int
    patch_size: int = 48
    crops_per_image: int = 1
    batches_per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.widths):
            raise ValueError("there is no photo to draw crops from")
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one")
        for name in ("global_batch", "crops_per_image", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        for task in self.tasks:
            get_task(task)
        crops = len(self.widths) * self.crops_per_image
        object.__setattr__(self, "batches_per_epoch", math.ceil(crops / self.global_batch))

    def task_of(self, step: int) -> str:
        """Uniform over the tasks, equal on all ranks."""
        return self.tasks[int(_below(np.array([len(self.tasks)]), self.seed, _TASK, step)[0])]

    def images_at(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """The photos of those places in the epoch; places beyond its last crop go on with further shuffles."""
        turns, within = np.divmod(places // self.crops_per_image, len(self.widths))
        images = np.empty(len(places), np.int64)
        for turn in np.unique(turns):
            here = turns == turn
            images[here] = _shuffled(self.seed, epoch, int(turn), len(self.widths))[within[here]]
        return images

    def substitute(self, epoch: int, place: int, attempt: int) -> int:
        """Another photo for a place whose own cannot be read."""
        return int(_below(np.array([len(self.widths)]), self.seed, _SUBSTITUTE, epoch, place, attempt)[0])

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> BatchPlan:
        """What rank ``rank`` of ``world_size`` gets in global step ``step``: a contiguous slice of the global batch."""
        per_rank = self.global_batch // world_size
        epoch, within = divmod(step, self.batches_per_epoch)
        task = self.task_of(step)
        start = within * self.global_batch + rank * per_rank
        places = np.arange(start, start + per_rank)
        images = self.images_at(epoch, places)
        size = crop_size(task, self.patch_size)
        tops, lefts = self.anchors(task, epoch, places, self.heights[images], self.widths[images])
        seeds = (_mix(self.seed, _SEED, epoch, places) >> np.uint64(1)).astype(np.int64)
        return BatchPlan(step, epoch, task, size, images, tops, lefts, seeds, places)

    def anchors(
        self, task: str, epoch: int, places: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Upper left corners of the crops, on the grid of the task's scale; 0 where the photo is smaller."""
        scale, size = get_task(task).scale, crop_size(task, self.patch_size)
        tops, lefts = (
            scale * _below(np.maximum(lengths - size, 0) // scale + 1, self.seed, stream, epoch, places)
            for stream, lengths in ((_TOP, heights), (_LEFT, widths))
        )
        return tops, lefts
