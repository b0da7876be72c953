"""What the loaders hand over."""

from typing import NamedTuple

import torch
from torch import Tensor

from ipt_fast.data.plan import BatchPlan


class Batch(NamedTuple):
    """One rank's part of a batch.

    ``gt`` uint8 [B, 3, rS, rS], the clean crops; ``lq`` uint8 [B, 3, S, S], their degraded partners, or None where
    ``degrade`` is to make them; ``seeds`` int64 [B], one a sample, for ``degrade``.

    Without ``lq`` the three channels of a pixel lie side by side in memory, as decoders leave them: ``degrade`` puts
    the channels apart while it makes floats of them. Pairs are contiguous, as networks take them.
    """

    gt: Tensor
    lq: Tensor | None
    task: str
    seeds: Tensor
    epoch: int
    step: int

    @classmethod
    def of(cls, plan: BatchPlan, gt: Tensor, lq: Tensor | None = None) -> "Batch":
        """Return the batch of a plan, with its decoded crops."""
        return cls(gt, lq, plan.crop.task, torch.from_numpy(plan.seeds), plan.epoch, plan.step)


class DecodedBatch(NamedTuple):
    """A batch on its way to the training.

    ``unreadable``: (path, reason) of each sample whose photo was replaced; ``seconds`` that decoding took on one core,
    0 where it is not known.
    """

    batch: Batch
    unreadable: list[tuple[str, str]]
    seconds: float = 0.0
