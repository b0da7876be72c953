"""What the weights that ship are worth on test sets, each beside what came in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ipt_fast.evaluation.metrics import finite_mean, psnr_rgb, psnr_y
from ipt_fast.evaluation.score import INPUT, Method, mean_scores, score_set
from ipt_fast.evaluation.test_sets import Pair, find_set, read_pair
from ipt_fast.inference import prepare_for_inference, restore
from ipt_fast.inference.prepare import PreparedIPT
from ipt_fast.model import IPT
from ipt_fast.tasks import Task, get_task

SETS = (
    ("sr2", "Set5"), ("sr3", "Set5"), ("sr4", "Set5"), ("derain", "Rain100L"),
    ("denoise30", "CBSD68"), ("denoise50", "CBSD68"),
)  # fmt: skip


@dataclass(frozen=True)
class SetScore:
    """Means over the first ``images`` of a set, dB: of the input (super-resolution: bicubic) and of the output.

    ``noise``: "clipped" to 0..255, as the network is trained, or "unclipped", as many tables have it; "" without noise.
    """

    task: str
    image_set: str
    images: int
    noise: str
    input_y: float
    output_y: float
    input_rgb: float
    output_rgb: float


def all_scores(model: IPT, sets: Path, limit: int | None = None) -> Iterator[SetScore]:
    """Yield the scores of every set that is there; ``limit`` images of each at most."""
    for name, folder in SETS:
        if not (sets / folder).is_dir():
            continue
        task = get_task(name)
        network, images = prepare_for_inference(model, name), find_set(sets / folder, task)
        scores = list(score_set(images, task, {"model": Method(network, name, {})}, limit=limit))
        before, after = sorted(mean_scores(scores), key=lambda mean: mean.method != INPUT)
        noise = "clipped" if task.kind == "denoise" else ""
        values = before.psnr_y, after.psnr_y, before.psnr_rgb, after.psnr_rgb
        yield SetScore(name, folder, before.images, noise, *values)
        if noise:
            yield _unclipped(network, task, sets / folder, limit)


def unclipped_pair(pair: Pair, task: Task, seed: int) -> tuple[Tensor, Tensor]:
    """Return (lq, gt), float [1, 3, H, W]; the noise, of ``torch.Generator().manual_seed(seed)``, leaves 0..255."""
    gt = read_pair(pair, task)[0][None].float()
    return gt + task.sigma * torch.randn(gt.shape, generator=torch.Generator().manual_seed(seed)), gt


def _unclipped(network: PreparedIPT, task: Task, folder: Path, limit: int | None) -> SetScore:
    """Score with noise that leaves 0..255."""
    values: list[tuple[float, ...]] = []
    for number, pair in enumerate(find_set(folder, task).pairs[:limit]):
        lq, gt = unclipped_pair(pair, task, number)
        output = restore(network, lq, task.name)
        values.append(tuple(psnr(x, gt).item() for psnr in (psnr_y, psnr_rgb) for x in (lq, output)))
    means = [finite_mean(column) for column in zip(*values, strict=True)]
    return SetScore(task.name, folder.name, len(values), "unclipped", *means)
