"""Training on pairs of photos: a folder of clean ones (GT) and one of degraded ones (LQ), matched by their names."""

from collections.abc import Sequence
from pathlib import Path

from ipt_fast.data.factory import check_settings
from ipt_fast.data.index import build_index
from ipt_fast.data.index_file import ImageEntry
from ipt_fast.data.plan import CropPlan, CropSpec, subset
from ipt_fast.data.source import CropSource, PhotoTable
from ipt_fast.data.torch_loader import TorchLoader
from ipt_fast.io.pairs import PairError, match_pairs
from ipt_fast.tasks import get_task


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
) -> TorchLoader:
    """Return a loader of crops from two folders, at the same places of both photos; settings as in ``make_loader``.

    Raises:
        ValueError: a setting is out of range.
        NoImagesError: a folder holds no photo.
        PairError: the photos of the folders do not pair.
    """
    check_settings(batch_size, rank, world_size, prefetch)
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
    pairs = [pairs[i] for i in subset(len(pairs), data_fraction)]
    gt, lq = (PhotoTable([pair[i] for pair in pairs]) for i in (0, 1))
    # Any place of the degraded photo serves, whatever the task: its partner is cropped at scale times that.
    crop = CropSpec(task, 1, patch_size)
    plan = CropPlan(lq.widths, lq.heights, (crop,), batch_size * world_size, seed, patch_size, crops_per_image)
    source = CropSource(plan, lq, gt, scale)
    return TorchLoader(source, rank, world_size, workers=workers, prefetch=prefetch)
