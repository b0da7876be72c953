"""Scores of networks, and of the input itself, on a test set."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.evaluation.metrics import SSIM_SIDE, means_by, psnr_rgb, psnr_y, scored_border, ssim_y
from ipt_fast.evaluation.perceptual import MIN_SIDE, Distance
from ipt_fast.evaluation.test_sets import ImageSet, Pair, read_pair
from ipt_fast.inference import restore
from ipt_fast.inference.prepare import PreparedIPT
from ipt_fast.model import IPT
from ipt_fast.ops import degrade
from ipt_fast.tasks import Task

INPUT = "input"
METRICS = ("psnr_y", "psnr_rgb", "ssim_y", "seconds", "lpips", "dists")


@dataclass(frozen=True)
class Score:
    """One image under one method: dB, dB, 0..1 (nan under 11 pixels a side), seconds to restore.

    LPIPS and DISTS are None where nobody asked for them, and nan under 31 and 16 pixels a side.
    ``method`` is "input" (for super-resolution: enlarged bicubically) or the name of a checkpoint.
    """

    image_set: str
    task: str
    image: str
    method: str
    psnr_y: float
    psnr_rgb: float
    ssim_y: float
    seconds: float
    lpips: float | None = None
    dists: float | None = None


@dataclass(frozen=True)
class Method:
    """A network (best prepared), its task that serves, and how images go through it (keywords of ``restore``)."""

    model: IPT | PreparedIPT
    task: str
    options: Mapping[str, object]


def lq_and_gt(pair: Pair, task: Task, seed: int) -> tuple[Tensor, Tensor]:
    """Return (lq, gt), float [1, 3, H, W], 0..255; an lq that is not on disk is exact bicubic, or noise of ``seed``.

    Raises:
        OSError, TestSetError: as ``read_pair``.
    """
    gt, lq = read_pair(pair, task)
    if lq is not None:
        return lq[None].float(), gt[None].float()
    return degrade(gt[None], task, seeds=torch.tensor([seed]))


@checked
def score_pair(
    image_set: ImageSet,
    number: int,
    task: Task,
    methods: Mapping[str, Method],
    seed: int = 0,
    distances: Mapping[str, Distance] | None = None,
) -> Iterator[tuple[Score, Tensor, Tensor]]:
    """Yield the scores of image ``number`` of a set, of the input and of each method, what was scored, and the gt.

    The border that is not scored is the scale for super-resolution, none otherwise. Image number n has the noise of
    seed ``seed * 1_000_000 + n``, whatever is scored beside it. Both images are float [1, 3, H, W], 0..255.
    ``distances`` has "lpips", "dists" or both, of ``load_lpips`` and ``load_dists``.

    Raises:
        OSError, TestSetError: as ``read_pair``, before the first score.
    """
    pair = image_set.pairs[number]
    lq, gt = lq_and_gt(pair, task, seed * 1_000_000 + number)
    before = bicubic_up(lq, task.scale) if task.scale > 1 else lq
    names = (image_set.name, task.name, pair.name)
    # An image hardly larger than the border is scored whole.
    border = scored_border(task) if min(gt.shape[-2:]) > 2 * scored_border(task) else 0
    figures, distant = _figures(before, gt, border), _distances(distances, before, gt, border)
    yield Score(*names, INPUT, *figures, 0.0, *distant), before, gt
    for name, method in methods.items():
        start = time.perf_counter()
        output = restore(method.model, lq, method.task, **method.options)  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
        figures, distant = _figures(output, gt, border), _distances(distances, output, gt, border)
        yield Score(*names, name, *figures, seconds, *distant), output, gt


@checked(limit=0)
def score_set(
    image_set: ImageSet, task: Task, methods: Mapping[str, Method], seed: int = 0, limit: int | None = None
) -> Iterator[Score]:
    """Yield the scores of ``score_pair`` for the first ``limit`` images of a set, or for all."""
    for number in range(len(image_set.pairs[:limit])):
        for score, *_ in score_pair(image_set, number, task, methods, seed):
            yield score


def _figures(output: Tensor, gt: Tensor, border: int) -> tuple[float, float, float]:
    large = min(gt.shape[-2:]) - 2 * border >= SSIM_SIDE
    ssim = ssim_y(output, gt, border).item() if large else float("nan")
    return psnr_y(output, gt, border).item(), psnr_rgb(output, gt, border).item(), ssim


def _distances(
    distances: Mapping[str, Distance] | None, output: Tensor, gt: Tensor, border: int
) -> tuple[float | None, float | None]:
    def measure(name: str) -> float | None:
        if not distances or name not in distances:
            return None
        large = min(gt.shape[-2:]) - 2 * border >= MIN_SIDE[name]
        return distances[name](output, gt, border).item() if large else math.nan

    return measure("lpips"), measure("dists")


@dataclass(frozen=True, kw_only=True)
class Mean(Score):
    """The mean of one set, task and method; ``image`` is "mean".

    PSNR is that of the images that differ from their ground truth, where any does; ``identical`` of ``images`` do not.
    """

    images: int
    identical: int


@checked
def mean_scores(scores: Sequence[Score]) -> list[Mean]:
    """Return one mean per set, task and method, in the order of the scores."""
    means = means_by(scores, _group, METRICS)
    images = Counter(map(_group, scores))
    identical = Counter(_group(score) for score in scores if math.isinf(score.psnr_rgb))
    return [
        Mean(g[0], g[1], "mean", g[2], *figures, images=images[g], identical=identical[g])
        for g, figures in means.items()
    ]


def _group(s: Score) -> tuple[str, str, str]:
    return (s.image_set, s.task, s.method)
