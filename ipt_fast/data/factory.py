"""From an index to its loader."""

from collections.abc import Sequence

import torch

from ipt_fast.data.base import CropLoader
from ipt_fast.data.dali import open_loader, unavailable_reason
from ipt_fast.data.decode import silence_pillow_warnings
from ipt_fast.data.index import ImageIndex
from ipt_fast.data.plan import CropPlan, crop_spec, subset
from ipt_fast.data.source import CropSource, PhotoTable
from ipt_fast.data.torch_loader import TorchLoader
from ipt_fast.tasks import TASKS


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
        device: where DALI decodes, "cuda" or "cpu"; None for the GPU where there is one.
        data_fraction: fraction of the photos to use, the same ones whatever the seed (the paper's Figure 6).

    Raises:
        ValueError: a setting is out of range, or the index holds no usable image.
        ModuleNotFoundError: ``loader="dali"`` without DALI; the message names the extra to install.
    """
    check_settings(batch_size, rank, world_size, prefetch)
    if loader not in ("auto", "dali", "torch"):
        raise ValueError(f'loader is {loader!r}; it has to be "auto", "dali" or "torch"')
    if not index.usable:
        raise ValueError("the index holds no usable image; see its refusals")
    silence_pillow_warnings()
    table = PhotoTable([index.usable[i] for i in subset(len(index.usable), data_fraction)])
    crops = tuple(crop_spec(task, patch_size) for task in tasks)
    plan = CropPlan(table.widths, table.heights, crops, batch_size * world_size, seed, patch_size, crops_per_image)
    source = CropSource(plan, table)
    missing = unavailable_reason() if loader != "torch" else None
    if loader == "dali" and missing:
        raise ModuleNotFoundError(f'loader="dali" cannot serve: {missing}; or use loader="torch"')
    if loader == "torch" or missing:
        return TorchLoader(source, rank, world_size, workers=workers, prefetch=prefetch, why=missing or "")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return open_loader(source, rank, world_size, workers=workers, prefetch=prefetch, device=where)


def check_settings(batch_size: int, rank: int, world_size: int, prefetch: int) -> None:
    """Refuse what no loader can serve.

    Raises:
        ValueError: a setting is out of range.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} and world_size {world_size}; rank has to lie in 0..{world_size - 1}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it has to be at least 1")
    if prefetch < 1:
        raise ValueError(f"prefetch is {prefetch}; it has to be at least 1")
