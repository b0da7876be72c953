"""What a step of a recipe takes on a device, by arithmetic: weights, activations, contrastive loss.

The counts are those of the layers' own bookkeeping (``model/layers.py``): a layer keeps the inputs of its parts, packed
projections and attention's output, in elements of N D a sample: 6 in the encoder, 11 in the decoder; ``hidden_bytes``
has what is recomputed or kept.
"""

import logging
from dataclasses import dataclass

import torch

from ipt_fast.engine.config import TrainConfig
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.precision import device_memory, hidden_bytes, resolve
from ipt_fast.model import IPT
from ipt_fast.ops._registry import choose
from ipt_fast.ops.patch_contrastive_loss import backend_status
from ipt_fast.tasks import get_task

_HEAD_AND_TAIL = 10  # N D elements of a sample that the convolutions at both ends keep; tails that enlarge keep more
_ENLARGED = {1: 0, 2: 4, 3: 9, 4: 20}  # their maps after each PixelShuffle
# Of the dense loss: similarities, their exponentials and their gradient; the other backends stay below a bound.
_DENSE_MATRICES, _BLOCKS = 3, 64 * 2**20
_GIB = 2**30
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step on one rank. ``backend`` is the one that the contrastive loss would take."""

    weights: int
    activations: int
    contrastive: int
    backend: str

    @property
    def total(self) -> int:
        """Return the sum of the parts."""
        return self.weights + self.activations + self.contrastive

    def __str__(self) -> str:
        parts = f"{self.weights / _GIB:.1f} weights, gradients and Adam, {self.activations / _GIB:.1f} activations"
        loss = f", {self.contrastive / _GIB:.1f} contrastive loss ({self.backend})" if self.contrastive else ""
        return f"about {self.total / _GIB:.1f} GiB a step, estimated: {parts}{loss}"


def step_memory(config: TrainConfig, dist_info: DistInfo) -> StepMemory:
    """Return what a step takes on this rank, with everything automatic chosen as the step will choose it."""
    precision, recompute = resolve(config, dist_info)
    model, batch = config.model, config.batch_size // dist_info.world_size
    with torch.device("meta"):
        parameters = sum(p.numel() for p in IPT(model).parameters())
    half = precision != "fp32"
    element = 2 if half else 4
    # float32: weight, gradient, two moments, average; and the 16-bit copies of the step
    weights = parameters * (8 + 4 * (config.ema > 0) + 2 * half)
    weights += 8 * parameters // (dist_info.world_size if config.zero else 1)
    enlarged = max(_ENLARGED[get_task(task).scale] for task in model.tasks)
    kept = 17 * model.num_layers + 2 * model.mlp + _HEAD_AND_TAIL + enlarged
    token_bytes = model.num_tokens * model.embed_dim * element  # bytes of one sample's [N, D]
    activations = batch * kept * token_bytes
    # Without recomputation every hidden layer stays; with it one at a time is made again.
    activations += batch * (model.ffn_ratio * token_bytes if recompute else hidden_bytes(model, precision))
    backend = choose("patch_contrastive_loss", None, backend_status(dist_info.device))
    contrastive = 0
    if config.lam:
        tokens = batch * model.num_tokens
        contrastive = 2 * 4 * tokens * model.embed_dim + _BLOCKS
        if backend == "eager":
            columns = tokens * (dist_info.world_size if config.contrastive_scope == "global" else 1)
            contrastive = 2 * 4 * tokens * model.embed_dim + _DENSE_MATRICES * 4 * tokens * columns
    return StepMemory(weights, activations, contrastive, backend)


def warn_of_memory(config: TrainConfig, dist_info: DistInfo) -> StepMemory:
    """Return what a step takes, and warn before the first one where the device has less."""
    needed, there = step_memory(config, dist_info), device_memory(dist_info.device)
    if needed.total > there:
        recomputes = resolve(config, dist_info)[1]
        advice = "a smaller batch_size" + ("" if recomputes else ", recompute=on")
        if needed.backend == "eager" and config.lam:
            advice += ", another backend of the contrastive loss than IPT_FAST_IMPL=eager"
        _log.warning(
            "this run will probably run out of memory: %s, and the device has %.1f GiB; try %s, or more ranks",
            needed, there / _GIB, advice,
        )  # fmt: skip
    return needed
