"""Training on pairs of photos: a folder of clean ones (GT) and one of degraded ones (LQ), matched by their names."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from ipt_fast.data import ImageEntry, build_index
from ipt_fast.data.decode import DECODE_ERRORS, decode_rows, mirror_pad
from ipt_fast.data.plan import BatchPlan, CropPlan, draw_share
from ipt_fast.data.source import BadPhotoError, CropSource, PhotoTable
from ipt_fast.data.torch_loader import TorchLoader
from ipt_fast.data.types import Batch
from ipt_fast.tasks import get_task

# The plan draws crops of plain size at any place for this task; what the pairs are for does not matter to it.
_PLAIN_CROPS = "deblur"
# What sets put around the name that both photos of a pair share: rain-001 and norain-001, baby and babyx2.
_WORDS = "norain|rain|clean|noisy|blurry|blur|sharp|gt|lq|hr|lr"
_AROUND = re.compile(rf"^(?:{_WORDS})[-_]|(?:x[234]|[-_](?:{_WORDS}))$")


class PairError(ValueError):
    """Folders that are no pairs; the message names files of both."""


def shared_name(path: str | Path) -> str:
    """What the names of the two photos of a pair have in common: ``norain-001.png`` -> ``001``."""
    return _AROUND.sub("", Path(path).stem.lower())


def match_pairs(
    clean: Sequence[ImageEntry], degraded: Sequence[ImageEntry], scale: int
) -> list[tuple[ImageEntry, ImageEntry]]:
    """Pairs (clean, degraded), in the order of the degraded photos' paths.

    Raises:
        PairError: a photo has no partner or several, or the sizes do not fit the scale; never a guess.
    """
    by_name: dict[str, list[ImageEntry]] = {}
    for entry in clean:
        by_name.setdefault(shared_name(entry.path), []).append(entry)
    pairs = []
    for entry in degraded:
        partners = by_name.pop(shared_name(entry.path), [])
        if len(partners) != 1:
            found = " and ".join(partner.path for partner in partners) or f"none called {shared_name(entry.path)!r}"
            raise PairError(f"{entry.path} needs one clean photo of the same name, found {found}")
        if (partners[0].width, partners[0].height) != (scale * entry.width, scale * entry.height):
            raise PairError(
                f"{partners[0].path} is {partners[0].width}x{partners[0].height}, but {entry.path} is "
                f"{entry.width}x{entry.height}; the clean photo must be {scale} times as large"
            )
        pairs.append((partners[0], entry))
    if by_name:
        lonely = next(iter(by_name.values()))[0].path
        raise PairError(f"{lonely} has no degraded partner, nor have {len(by_name) - 1} other clean photos")
    return pairs


class PairSource(CropSource):
    """Crops of both photos at the same place, packed into one row of bytes a sample: the input, then the target."""

    def __init__(self, clean: PhotoTable, degraded: PhotoTable, plan: CropPlan, scale: int) -> None:
        super().__init__(degraded, plan)
        self.clean, self.scale = clean, scale

    def crops(self, batch: BatchPlan) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """uint8 [B, 3 S S + 3 rS rS], and (path, reason) of each sample whose photos had to be replaced."""
        S = batch.size
        out = np.empty((len(batch.images), 3 * S * S * (1 + self.scale**2)), np.uint8)
        bad: list[tuple[str, str]] = []
        for image, group in groupby(range(len(batch.images)), key=lambda sample: batch.images[sample]):
            samples = list(group)  # crops of one photo lie side by side, so that one decode serves them
            try:
                photos = self._photos(int(image))
            except BadPhotoError as error:
                bad += [(error.path, error.reason)] * len(samples)
                for sample in samples:
                    out[sample] = self.replace(
                        batch, sample, lambda i, top, left: self._pack(self._photos(i), S, top, left)
                    )
                continue
            for sample in samples:
                out[sample] = self._pack(photos, S, int(batch.tops[sample]), int(batch.lefts[sample]))
        return out, bad

    def _photos(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        both = []
        for table in (self.table, self.clean):
            try:
                both.append(decode_rows(table.read(image), mode=table.mode(image)))
            except DECODE_ERRORS as error:
                raise BadPhotoError(table.path(image), str(error)) from error
        return both[0], both[1]

    def _pack(self, photos: tuple[np.ndarray, np.ndarray], S: int, top: int, left: int) -> np.ndarray:
        parts = []
        for photo, scale in zip(photos, (1, self.scale), strict=True):
            side = scale * S
            region = mirror_pad(photo[scale * top : scale * top + side, scale * left : scale * left + side], side)
            parts.append(region.transpose(2, 0, 1).reshape(-1))
        return np.concatenate(parts)


class PairLoader(TorchLoader):
    """``TorchLoader`` for pairs: yields batches with ``lq``, resumes in the middle of an epoch as exactly."""

    def __init__(
        self, source: PairSource, task: str, rank: int, world_size: int, *, workers: int | None, prefetch: int
    ) -> None:
        super().__init__(source, rank, world_size, workers=workers, prefetch=prefetch, why="")
        self._task, self._scale, self._side = task, source.scale, source.plan.patch_size

    def __next__(self) -> Batch:
        packed = super().__next__()
        S, r = self._side, self._scale
        inputs, targets = packed.gt.split([3 * S * S, 3 * S * S * r * r], dim=1)
        shapes = (-1, 3, S, S), (-1, 3, r * S, r * S)
        return Batch(
            targets.reshape(shapes[1]), inputs.reshape(shapes[0]), self._task, packed.seeds, packed.epoch, packed.step
        )


def make_pair_loader(
    clean: Path,
    degraded: Path,
    task: str,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    patch_size: int = 48,
    crops_per_image: int = 1,
    workers: int | None = None,
    prefetch: int = 2,
    data_fraction: float = 1.0,
    progress: bool = True,
) -> PairLoader:
    """A loader of crops from two folders; see ``ipt_fast.data.make_loader`` for the settings.

    Raises:
        NoImagesError: a folder holds no photo.
        PairError: the photos of the folders do not pair.
    """
    scale = get_task(task).scale
    clean_index, degraded_index = (build_index([folder], min_size=1, progress=progress) for folder in (clean, degraded))
    for index in (clean_index, degraded_index):
        if index.refused:
            entry = index.refused[0]
            raise PairError(f"{entry.path} cannot be used: {entry.reason}; take it and its partner away")
    pairs = match_pairs(clean_index.usable, degraded_index.usable, scale)
    pairs = [pairs[i] for i in draw_share(len(pairs), data_fraction)]
    tables = PhotoTable([pair[0] for pair in pairs]), PhotoTable([pair[1] for pair in pairs])
    plan = CropPlan(
        tables[1].widths,
        tables[1].heights,
        (_PLAIN_CROPS,),
        batch_size * world_size,
        seed,
        patch_size,
        crops_per_image,
    )
    source = PairSource(*tables, plan, scale)
    return PairLoader(source, task, rank, world_size, workers=workers, prefetch=prefetch)
