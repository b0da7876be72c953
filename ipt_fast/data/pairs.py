"""Training on pairs of photos: a folder of clean ones (GT) and one of degraded ones (LQ), matched by their names."""

import re
from collections.abc import Sequence
from pathlib import Path

from ipt_fast.data.factory import check_settings
from ipt_fast.data.index import build_index
from ipt_fast.data.index_file import ImageEntry
from ipt_fast.data.plan import CropPlan, CropSpec, subset
from ipt_fast.data.source import CropSource, PhotoTable
from ipt_fast.data.torch_loader import TorchLoader
from ipt_fast.tasks import get_task

# What sets put around the name that both photos of a pair share: rain-001 and norain-001, baby and babyx2.
_WORDS = "norain|rain|clean|noisy|blurry|blur|sharp|gt|lq|hr|lr"
_AROUND = re.compile(rf"^(?:{_WORDS})[-_]|(?:x[234]|[-_](?:{_WORDS}))$")


class PairError(ValueError):
    """Folders that are no pairs; the message names files of both."""


def shared_name(path: str | Path) -> str:
    """Return what the names of the two photos of a pair have in common: ``norain-001.png`` -> ``001``."""
    return _AROUND.sub("", Path(path).stem.lower())


def match_pairs(
    clean: Sequence[ImageEntry], degraded: Sequence[ImageEntry], scale: int
) -> list[tuple[ImageEntry, ImageEntry]]:
    """Return pairs (clean, degraded), in the order of the degraded photos' paths.

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
    pairs = match_pairs(clean_index.usable, degraded_index.usable, scale)
    pairs = [pairs[i] for i in subset(len(pairs), data_fraction)]
    gt, lq = (PhotoTable([pair[i] for pair in pairs]) for i in (0, 1))
    # Any place of the degraded photo serves, whatever the task: its partner is cropped at scale times that.
    crop = CropSpec(task, 1, patch_size)
    plan = CropPlan(lq.widths, lq.heights, (crop,), batch_size * world_size, seed, patch_size, crops_per_image)
    source = CropSource(plan, lq, gt, scale)
    return TorchLoader(source, rank, world_size, workers=workers, prefetch=prefetch)
