"""Scores of a network while it trains: PSNR-Y on photos held out, the same crops spoilt the same way every time."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ipt_fast.evaluation.metrics import psnr_y, scored_border
from ipt_fast.inference import prepare_for_inference, restore
from ipt_fast.io.images import read_rgb
from ipt_fast.io.pairs import match_pairs, split_sides
from ipt_fast.io.scan import image_files
from ipt_fast.model import IPT
from ipt_fast.ops import degrade
from ipt_fast.tasks import Task, get_task

# Of each photo the middle, this many pixels a side of the network's input; of more photos the first of them.
_SIDE, _MOST = 192, 32


class Validation:
    """Held-out photos, ready to score a network of these tasks with.

    Args:
        folders: one folder of clean photos, nested or flat; or two, of clean photos and their degraded partners, as
            ``--pairs`` takes them, for a single task.
        tasks: names of the tasks.

    Raises:
        ValueError: no photos, photos that do not pair or do not go together, or pairs for several tasks.
        OSError: a photo or folder cannot be read.
    """

    def __init__(self, folders: Sequence[Path], tasks: Sequence[str]):
        self.tasks = [get_task(name) for name in tasks]
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder of validation photos")
        found = [[str(path) for path in image_files(folder, recursive=True)] for folder in folders]
        if not all(found):
            raise ValueError(f"{folders[found.index([])]}: no photos to validate on")
        scale = self.tasks[0].scale
        if len(folders) == 1:
            paths: list[tuple[str, ...]] = [(path,) for path in found[0]]
        elif len(self.tasks) > 1:
            raise ValueError(f"validation pairs are of one task, this run has {', '.join(tasks)}; give clean photos")
        else:
            if folders[0].resolve() == folders[1].resolve():
                found = list(split_sides(found[0], str(folders[0])))
            gt_root, lq_root = map(str, folders)
            paths = list(match_pairs(found[0], found[1], scale, gt_root=gt_root, lq_root=lq_root))
        self._photos = []
        for names in sorted(paths)[:_MOST]:
            gt, *lq = map(read_rgb, names)  # [3, H, W] each
            if lq and any(side // scale != small for side, small in zip(gt.shape[1:], lq[0].shape[1:], strict=True)):
                raise ValueError(f"{names[0]} and {names[1]} do not go together: needed is {scale} times the size")
            self._photos.append((gt, *lq))

    def __len__(self) -> int:
        return len(self._photos)

    def __call__(self, model: IPT) -> dict[str, float]:
        """Return task -> mean PSNR-Y in dB. The model is as before; nothing is drawn from any global generator."""
        network, device = prepare_for_inference(model), next(model.parameters()).device
        overlap = model.config.patch_size // 8  # as little as hides the seams
        scores = {}
        for task in self.tasks:
            psnr = []
            for number, photo in enumerate(self._photos):
                lq, gt = (image.to(device) for image in _crop(task, number, *photo))
                psnr.append(psnr_y(restore(network, lq, task.name, overlap), gt, border=scored_border(task)).item())
            scores[task.name] = sum(psnr) / len(psnr)
        return scores


def _crop(task: Task, number: int, gt: Tensor, lq: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the middle of a photo for a task, degraded [1, 3, h, w] and clean [1, 3, rh, rw], float 0..255."""
    r = task.scale
    (y, h), (x, w) = (((side // r - min(side // r, _SIDE)) // 2, min(side // r, _SIDE)) for side in gt.shape[1:])
    clean = gt[None, :, y * r : (y + h) * r, x * r : (x + w) * r]
    if lq is not None:
        return lq[None, :, y : y + h, x : x + w].float(), clean.float()
    return degrade(clean, task, seeds=torch.tensor([number]))
