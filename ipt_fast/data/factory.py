"""From photos to their loader: clean ones of an index, or pairs of two folders, matched by their names."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ipt_fast.arguments import checked
from ipt_fast.data.dali import unavailable_reason
from ipt_fast.data.dali.probe import gpu_decoder_fault
from ipt_fast.data.index import ImageEntry, ImageIndex, build_index
from ipt_fast.data.loader import CropLoader, TorchLoader
from ipt_fast.data.plan import CropPlan, CropSpec, crop_spec, subset
from ipt_fast.data.source import CropSource, PhotoTable
from ipt_fast.io.pairs import PairError, match_pairs, split_sides
from ipt_fast.tasks import TASKS, get_task

_TRIED = 8  # photos that the GPU's decoder is tried on


@checked(patch_size=1, crops_per_image=1)
def make_loader(
    index: ImageIndex,
    *,
    loader: str = "auto",
    tasks: Sequence[str] = TASKS,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    patch_size: int = 48,
    crops_per_image: int = 1,
    workers: int | None = None,
    prefetch: int = 2,
    data_fraction: float = 1.0,
    device: str | torch.device | None = None,
) -> CropLoader:
    """Return a loader of clean crops for the tasks, from the usable photos of an index.

    Batches depend on ``seed`` and on the global batch size (``batch_size * world_size``) alone: not on the number of
    workers, the number of ranks or the kind of loader. An epoch is ``ceil(photos * crops_per_image / global batch)``
    steps; where the crops of an epoch do not fill its last batch (or a set is smaller than one batch), further crops
    of photos drawn anew fill it.

    Args:
        loader: "dali", "torch", or "auto" (DALI where it is installed).
        batch_size: crops a rank.
        workers: processes (torch) or threads (DALI); None for as many as there are cores for this rank. 0 decodes in
            this process (torch only).
        prefetch: batches decoded ahead, a worker (torch) or a pipeline (DALI: two of them on a CPU, one on a GPU).
        device: where DALI decodes, "cuda" or "cpu"; None for the GPU where there is one, if it decodes a few photos as
            the CPU does, which is tried in another process.
        data_fraction: fraction of the photos to use, the same ones whatever the seed (the paper's Figure 6).

    Raises:
        ValueError: a setting is out of range, or the index holds no usable image.
        ModuleNotFoundError: ``loader="dali"`` without DALI; the message names the extra to install.
        RuntimeError: ``device="cuda"``, and the GPU's decoder fails.
    """
    _check_settings(batch_size, rank, world_size, prefetch)
    if loader not in ("auto", "dali", "torch"):
        raise ValueError(f'loader is {loader!r}; it has to be "auto", "dali" or "torch"')
    if not index.usable:
        raise ValueError("the index holds no usable image; see its refusals")
    entries = [index.usable[i] for i in subset(len(index.usable), data_fraction)]
    crops = tuple(crop_spec(task, patch_size) for task in tasks)

    def crops_of(entries: Sequence[ImageEntry], global_batch: int, rank: int, world_size: int) -> CropSource:
        table = PhotoTable(entries)
        plan = CropPlan(table.widths, table.heights, crops, global_batch, seed, patch_size, crops_per_image)
        return CropSource(plan, table, rank, world_size)

    source = crops_of(entries, batch_size * world_size, rank, world_size)
    missing = unavailable_reason() if loader != "torch" else None
    if loader == "auto" and workers == 0 and missing is None:
        missing = "workers=0 decodes in this process, which DALI does not"
    if loader == "dali" and missing:
        raise ModuleNotFoundError(f'loader="dali" cannot serve: {missing}; or use loader="torch"')
    if loader == "torch" or missing:
        return TorchLoader(source, workers=workers, prefetch=prefetch, why=missing or "")
    from ipt_fast.data.dali.loader import DaliLoader

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trial = crops_of(entries[:: -(-len(entries) // _TRIED)], _TRIED, 0, 1)
    fault = gpu_decoder_fault(trial) if where.type == "cuda" else None
    if fault and device is not None:
        raise RuntimeError(f'make_loader: device="{device}": {fault}; use device="cpu"')
    where = torch.device("cpu") if fault else where
    return DaliLoader(source, workers=workers, prefetch=prefetch, device=where, why=fault or "")


@checked(patch_size=1, crops_per_image=1)
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

    ``clean`` and ``degraded`` may be one folder, with ``sharp`` and ``blur`` (or such names) in each of its scenes.

    Raises:
        ValueError: a setting is out of range.
        NoImagesError: a folder holds no photo.
        PairError: the photos of the folders do not pair.
    """
    _check_settings(batch_size, rank, world_size, prefetch)
    scale = get_task(task).scale
    by_path: list[dict[str, ImageEntry]] = []
    indexes = [build_index([folder], min_size=1, progress=progress) for folder in (clean, degraded)]
    for index in indexes:
        if index.refused:
            entry = index.refused[0]
            raise PairError(f"{entry.path} cannot be used: {entry.reason}; take it and its partner away")
        by_path.append({entry.path: entry for entry in index.usable})
    roots = {"gt_root": str(clean.absolute()), "lq_root": str(degraded.absolute())}
    sides = list(by_path[0]), list(by_path[1])
    if clean.resolve() == degraded.resolve():
        sides = split_sides(*sides[:1], roots["gt_root"])
    paths = match_pairs(*sides, scale, **roots)
    pairs = [(by_path[0][gt], by_path[1][lq]) for gt, lq in paths]
    for gt, lq in pairs:
        # Rows and columns of the clean photo that fill no degraded pixel are never cropped, as in evaluation.
        if (gt.width // scale, gt.height // scale) != (lq.width, lq.height):
            raise PairError(
                f"{gt.path} is {gt.width}x{gt.height}, but {lq.path} is {lq.width}x{lq.height}; "
                f"the clean photo must be {scale} times as large"
            )
    chosen = [pairs[i] for i in subset(len(pairs), data_fraction)]
    partners, table = (PhotoTable([pair[i] for pair in chosen]) for i in (0, 1))
    # Any place of the degraded photo serves, whatever the task: its partner is cropped at scale times that.
    crop = CropSpec(task, 1, patch_size)
    plan = CropPlan(table.widths, table.heights, (crop,), batch_size * world_size, seed, patch_size, crops_per_image)
    source = CropSource(plan, table, rank, world_size, partners, scale)
    return TorchLoader(source, workers=workers, prefetch=prefetch)


def _check_settings(batch_size: int, rank: int, world_size: int, prefetch: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} and world_size {world_size}; rank has to lie in 0..{world_size - 1}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it has to be at least 1")
    if prefetch < 1:
        raise ValueError(f"prefetch is {prefetch}; it has to be at least 1")
