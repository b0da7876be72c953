"""Which crop of which photo, under which task, at which place of which batch: a pure function of seed and position.

Nothing here knows of workers, ranks or loaders, so that none of them can change what is trained on. Everything is
drawn by hashing counters (splitmix64), which keeps the numbers the same on every machine and in every numpy.

An epoch visits each photo once, with ``crops_per_image`` crops side by side. It has as many global batches as hold
all crops; the last one is filled with further crops, of photos in the order of a second shuffle (for a set smaller
than one batch: as many shuffles as it takes). So each batch is full and each epoch has the same number of steps.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ipt_fast.tasks import get_task

# Streams of random numbers: what a hash is drawn for.
_TASK, _SHUFFLE, _TOP, _LEFT, _SEED, _SUBSET, _SUBSTITUTE, _ORDER = range(1, 9)
# Low-resolution pixels around an SR patch that exact bicubic needs on every side.
SR_MARGIN = 2


def _hash(*parts: int | np.ndarray) -> np.ndarray:
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
    uniform = (_hash(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (uniform * bound).astype(np.int64)


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, lap: int, n_images: int) -> np.ndarray:
    order = np.argsort(_hash(seed, _SHUFFLE, epoch, lap, np.arange(n_images)), kind="stable")
    order.setflags(write=False)
    return order


def subset(n_images: int, fraction: float) -> np.ndarray:
    """Return the photos of a fixed fraction, ascending: the same for any training seed, and part of any larger one.

    Raises:
        ValueError: the fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data_fraction is {fraction}; it has to be above 0 and at most 1")
    count = max(1, round(fraction * n_images))
    return np.sort(np.argsort(_hash(0, _SUBSET, np.arange(n_images)), kind="stable")[:count])


def shard_order(n_images: int) -> np.ndarray:
    """Return a fixed shuffle of the photos: the order in which shards hold them."""
    return np.argsort(_hash(0, _ORDER, np.arange(n_images)), kind="stable")


class CropSpec(NamedTuple):
    """What the plan has to know of a task: crops of ``size`` pixels a side lie on multiples of ``scale`` pixels."""

    task: str
    scale: int
    size: int


def crop_spec(task: str, patch_size: int) -> CropSpec:
    """Return the clean crops that a task is made of; SR crops carry the margin that exact bicubic needs.

    Raises:
        ValueError: there is no such task.
    """
    scale = get_task(task).scale
    return CropSpec(task, scale, (patch_size + 2 * SR_MARGIN) * scale if scale > 1 else patch_size)


@dataclass(frozen=True)
class BatchPlan:
    """One rank's part of one global batch. Arrays are int64 [B]; tops and lefts are pixels of the stored image."""

    step: int
    epoch: int
    crop: CropSpec
    images: np.ndarray
    tops: np.ndarray
    lefts: np.ndarray
    seeds: np.ndarray
    # Places of the samples in the epoch, from which substitutes for unreadable photos are found.
    places: np.ndarray


@dataclass(frozen=True, eq=False)
class CropPlan:
    """The plan of a whole run.

    ``widths`` and ``heights`` [n_images] are those of the photos that crops are cut from, ``crops`` one kind a task.
    """

    widths: np.ndarray
    heights: np.ndarray
    crops: tuple[CropSpec, ...]
    global_batch: int
    seed: int
    patch_size: int = 48
    crops_per_image: int = 1

    def __post_init__(self) -> None:
        if not len(self.widths):
            raise ValueError("there is no photo to draw crops from")
        if not self.crops:
            raise ValueError("tasks is empty; name at least one")
        for name in ("global_batch", "crops_per_image", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.widths) * self.crops_per_image / self.global_batch)

    def crop_at(self, step: int) -> CropSpec:
        """Return the task of a step and its crops: uniform over the tasks, equal on all ranks."""
        return self.crops[int(_below(np.array([len(self.crops)]), self.seed, _TASK, step)[0])]

    def images_at(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Return the photos of those places in the epoch; places beyond its last crop go on with further shuffles."""
        laps, within = np.divmod(places // self.crops_per_image, len(self.widths))
        images = np.empty(len(places), np.int64)
        for lap in np.unique(laps):
            here = laps == lap
            images[here] = _shuffled(self.seed, epoch, int(lap), len(self.widths))[within[here]]
        return images

    def substitute(self, batch: BatchPlan, sample: int, attempt: int) -> tuple[int, int, int]:
        """Return (image, top, left) to take for a sample whose own photo cannot be read: a crop of another photo."""
        places = batch.places[sample : sample + 1]
        count = np.array([len(self.widths)])
        image = _below(count, self.seed, _SUBSTITUTE, batch.epoch, int(places[0]), attempt)
        tops, lefts = self._anchors(batch.crop, batch.epoch, places, image)
        return int(image[0]), int(tops[0]), int(lefts[0])

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> BatchPlan:
        """Return what a rank gets in a global step: a contiguous slice of the global batch."""
        per_rank = self.global_batch // world_size
        epoch, within = divmod(step, self.batches_per_epoch)
        crop = self.crop_at(step)
        start = within * self.global_batch + rank * per_rank
        places = np.arange(start, start + per_rank)
        images = self.images_at(epoch, places)
        tops, lefts = self._anchors(crop, epoch, places, images)
        seeds = (_hash(self.seed, _SEED, epoch, places) >> np.uint64(1)).astype(np.int64)
        return BatchPlan(step, epoch, crop, images, tops, lefts, seeds, places)

    def _anchors(
        self, crop: CropSpec, epoch: int, places: np.ndarray, images: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Upper left corners of the crops, on the grid of the scale; 0 where the photo is smaller."""
        size, scale, seed = crop.size, crop.scale, self.seed
        tops, lefts = (
            scale * _below(np.maximum(sides[images] - size, 0) // scale + 1, seed, stream, epoch, places)
            for stream, sides in ((_TOP, self.heights), (_LEFT, self.widths))
        )
        return tops, lefts
