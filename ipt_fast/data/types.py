"""What the loaders hand over."""

from typing import NamedTuple

from torch import Tensor

from ipt_fast.data.plan import BatchPlan


class Batch(NamedTuple):
    """One rank's part of a batch.

    ``gt`` uint8 [B, 3, rS, rS], the clean crops; ``lq`` uint8 [B, 3, S, S], their degraded partners, or None where
    ``degrade`` is to make them; ``seeds`` int64 [B], one a sample, for ``degrade``.

    In memory the three channels of a pixel lie side by side, as decoders leave them: ``degrade`` reads them as they
    are, and puts the channels apart while it makes floats of them.
    """

    gt: Tensor
    lq: Tensor | None
    task: str
    seeds: Tensor
    epoch: int
    step: int


class DecodedBatch(NamedTuple):
    """A decoded batch: its plan, crops, (path, reason) of corrupt photos, and the seconds that decoding took, where
    they are known for a batch alone."""

    plan: BatchPlan
    crops: Tensor
    bad: list[tuple[str, str]]
    seconds: float = 0.0
