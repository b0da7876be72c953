"""Training on pairs of photos: a folder of clean ones (GT) and one of degraded ones (LQ), matched by their names."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from ipt_fast.data import ImageEntry, build_index
from ipt_fast.data.decode import decode_rows
from ipt_fast.data.plan import BatchPlan, CropPlan, draw_share
from ipt_fast.data.source import BadPhotoError, CropSource, PhotoTable
from ipt_fast.data.torch_loader import TorchLoader
from ipt_fast.data.types import Batch
from ipt_fast.io.images import DECODE_ERRORS
from ipt_fast.io.mirror import mirror_pad
from ipt_fast.io.pairs import PairError, match_pairs
from ipt_fast.tasks import get_task

# The plan draws crops of plain size at any place for this task; what the pairs are for does not matter to it.
_PLAIN_CROPS = "deblur"


def check_sizes(pairs: Sequence[tuple[ImageEntry, ImageEntry]], scale: int) -> None:
    """Refuse pairs (gt, lq) whose sizes do not fit the scale.

    Raises:
        PairError: the message names both files.
    """
    for gt, lq in pairs:
        if (gt.width, gt.height) != (scale * lq.width, scale * lq.height):
            raise PairError(
                f"{gt.path} is {gt.width}x{gt.height}, but {lq.path} is {lq.width}x{lq.height}; "
                f"the clean photo must be {scale} times as large"
            )


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
            region = photo[scale * top : scale * top + side, scale * left : scale * left + side]
            region, _, _ = mirror_pad(region, side, axes=(0, 1))
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
    by_path = [{entry.path: entry for entry in index.usable} for index in (clean_index, degraded_index)]
    roots = {"gt_root": str(clean.absolute()), "lq_root": str(degraded.absolute())}
    pairs = [
        (by_path[0][gt], by_path[1][lq]) for gt, lq in match_pairs(list(by_path[0]), list(by_path[1]), scale, **roots)
    ]
    check_sizes(pairs, scale)
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
