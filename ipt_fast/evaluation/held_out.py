"""Scores of a model on photos that it never saw: what came in, what came out, the ground truth (gt)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.evaluation.metrics import means_by, psnr_y, scored_border
from ipt_fast.inference import prepare_for_inference, restore
from ipt_fast.inference.prepare import PreparedIPT
from ipt_fast.model import IPT
from ipt_fast.ops import degrade
from ipt_fast.tasks import Task, get_task


@dataclass(frozen=True)
class HeldOutResult:
    """One photo and one task. Images are float [3, H, W], 0..255, rounded; PSNR-Y in dB.

    ``before`` is the degraded photo (for super-resolution its bicubic enlargement), ``after`` the model's output.
    ``draw`` counts the random degradations of one photo, from 0.
    """

    task: str
    photo: str
    draw: int
    before: Tensor
    after: Tensor
    gt: Tensor
    psnr_before: float
    psnr_after: float


COLUMNS = ("task", "input (SR: bicubic)", "model", "difference")
# Rain is light on one photo and heavy on the next, by 5 dB and more: one draw a photo says little about the mean.
RAIN_DRAWS = 4


@checked
def score_held_out(
    model: Any, photos: Mapping[str, Tensor], tasks: Sequence[str], seed: int = 0
) -> list[HeldOutResult]:
    """Degrade each photo for each task, restore it, and score both against the photo itself.

    Args:
        model: an ``IPT`` or a prepared one, see ``restore``.
        photos: name -> uint8 [3, H, W]. For super-resolution the photo is cut to a multiple of the scale.
        seed: of the noise and the rain; the same for every call, so that two models see the same input.

    Returns:
        One result per task and photo, and ``RAIN_DRAWS`` for rain.
    """
    network = prepare_for_inference(model) if isinstance(model, IPT) else model
    results = []
    for task in map(get_task, tasks):
        draws = RAIN_DRAWS if task.kind == "derain" else 1
        for number, (name, photo) in enumerate(photos.items()):
            for draw in range(draws):
                seeds = torch.tensor([seed * 1_000_000 + number * 1000 + draw])
                results.append(_score(network, task, name, photo, draw, seeds))
    return results


def _score(network: IPT | PreparedIPT, task: Task, name: str, photo: Tensor, draw: int, seeds: Tensor) -> HeldOutResult:
    height, width = (side - side % task.scale for side in photo.shape[1:])
    before, gt = degrade(photo[None, :, :height, :width], task, seeds=seeds)
    after = restore(network, before, task=task.name)
    if task.kind == "sr":
        before = bicubic_up(before, task.scale)
    before, after = (image.clamp(0, 255).round() for image in (before, after))
    border = scored_border(task)
    scores = psnr_y(before, gt, border=border).item(), psnr_y(after, gt, border=border).item()
    return HeldOutResult(task.name, name, draw, before[0], after[0], gt[0], *scores)


@checked
def mean_psnr(results: Sequence[HeldOutResult]) -> dict[str, tuple[float, ...]]:
    """Return task -> (mean PSNR-Y before, mean PSNR-Y after), in the order of the results."""
    return means_by(results, lambda r: r.task, ("psnr_before", "psnr_after"))


@checked
def score_rows(results: Sequence[HeldOutResult]) -> list[tuple[str, ...]]:
    """Return the rows of the table that a person reads, under ``COLUMNS``."""
    rows = ((task, before, after, after - before) for task, (before, after) in mean_psnr(results).items())
    return [(task, f"{before:.2f}", f"{after:.2f}", f"{gain:+.2f}") for task, before, after, gain in rows]
