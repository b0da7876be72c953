"""One training step: augment, degrade, forward, loss, backward, mean over the ranks, optimizer.

The step never makes the host wait for the device. Whether loss and gradient are finite is decided on the device, on
numbers that are the same on all ranks, and the fused Adam leaves the weights alone where they are not. The host reads
the outcome later (``StepOutcome.read``).
"""

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ipt_fast.checkpoint import CheckpointError, check_weights
from ipt_fast.data import SR_MARGIN, Batch
from ipt_fast.degradations.streak_folder import StreakFolder
from ipt_fast.engine.compiled import compiled
from ipt_fast.engine.config import TrainConfig
from ipt_fast.engine.distributed import DistInfo, GradientAllReduce
from ipt_fast.engine.graphs import StepGraphs, wanted
from ipt_fast.engine.half_weights import HalfWeights
from ipt_fast.engine.optimizer import make_optimizer
from ipt_fast.engine.precision import LossScale, resolve
from ipt_fast.losses import pretrain_loss
from ipt_fast.model import IPT
from ipt_fast.tasks import get_task

# An odd number with bits all over, as a signed 64-bit one: seeds that follow each other get draws that do not.
_MIX = -7046029254386353131

Degrade = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepResult:
    """What a step did, as plain numbers; the losses are means over the whole batch, of all ranks.

    ``skipped``: loss or gradient was not finite and the weights are as before. ``rescaled``: that is so because the
    fp16 loss scale was too high; it has been lowered. ``stop``: a rank was asked to stop.
    """

    total: float
    l1: float
    contrastive: float
    grad_norm: float
    skipped: bool
    rescaled: bool
    stop: bool


class StepOutcome:
    """The numbers of a step, on their way from the device: [6] total, l1, contrastive, stop, grad_norm, scale."""

    def __init__(self, numbers: Tensor):
        self.numbers, self.there = numbers, None
        if numbers.device.type == "cuda":
            # Copied now: read from the device they would wait behind the step that is launched next.
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.there = torch.cuda.Event()
            self.there.record()

    def read(self) -> StepResult:
        """Wait for the step to be done, and return them."""
        if self.there is not None:
            self.there.synchronize()
        total, l1, contrastive, stop, norm, scale = self.numbers.tolist()
        skipped = not all(map(math.isfinite, (total, l1, contrastive, norm)))
        return StepResult(total, l1, contrastive, norm, skipped, skipped and scale > 1, stop > 0)


def draw_orientation(seeds: Tensor) -> Tensor:
    """Draw one of the eight orientations of a square per seed: int64 [B], 0..7, 0 as it is."""
    mixed = seeds * _MIX
    mixed = (mixed ^ (mixed >> 29)) * _MIX
    return (mixed >> 40) & 7


def orient(images: Tensor, orientation: Tensor) -> Tensor:
    """Turn images [B, C, S, S] by ``orientation % 4`` quarter turns, after a flip for 4 and more."""
    out = torch.empty_like(images)
    for k in range(8):
        rows = (orientation == k).nonzero()[:, 0]
        if len(rows):
            part = images[rows.to(images.device)]
            part = part.flip(-1) if k >= 4 else part
            out[rows.to(images.device)] = torch.rot90(part, k % 4, (-2, -1))
    return out


class TrainStep:
    """Model, optimizer and loss scale, and the step that moves them.

    Args:
        model: on ``dist_info.device``.
        config: precision, loss and optimizer settings.
        dist_info: this rank.
        degrade: ``ipt_fast.ops.degrade`` or a stand-in.
    """

    def __init__(self, model: IPT, config: TrainConfig, dist_info: DistInfo, degrade: Degrade):
        self.model, self.config, self.dist_info, self.degrade = model, config, dist_info, degrade
        self.rain = StreakFolder(config.rain) if config.rain else None
        self.precision, self.recompute = resolve(config, dist_info)
        model.set_recompute(self.recompute)
        self.gradients = GradientAllReduce(model, dist_info.world_size, config.allreduce)
        self.forward: Callable[..., tuple[Tensor, Tensor]] = compiled(self.gradients.module, model, config)
        self.optimizer = make_optimizer(model, config)
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        self.half = None if dtype is None else HalfWeights(model, dtype, by_layer=dist_info.world_size > 1)
        self.scale = LossScale(self.precision == "fp16", dist_info.device)
        self.graphs = StepGraphs(self._compute, dist_info.device) if wanted(config, dist_info) else None
        self.ema = copy.deepcopy(model).requires_grad_(False) if config.ema else None

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Turn the loader's uint8 crops into input [B, 3, S, S] and target [B, 3, rS, rS].

        Both on the device, float32, 0..255. A batch of pairs brings its ``lq``; otherwise ``degrade`` makes it.
        """
        device = self.dist_info.device
        gt = batch.gt.to(device, non_blocking=True)
        lq = None if batch.lq is None else batch.lq.to(device, non_blocking=True)
        if self.config.augment:
            orientation = draw_orientation(batch.seeds)
            gt = orient(gt, orientation)
            lq = None if lq is None else orient(lq, orientation)
        if lq is not None:
            return lq.float(), gt.float()
        kind = get_task(batch.task).kind
        rain = {"rain": self.rain} if self.rain is not None and kind == "derain" else {}
        return self.degrade(gt, batch.task, seeds=batch.seeds, margin=SR_MARGIN if kind == "sr" else 0, **rain)

    def __call__(self, x: Tensor, target: Tensor, task: str, lr: float, stop: bool = False) -> StepOutcome:
        """Take one step. x [B, 3, S, S], target [B, 3, rS, rS]: of this rank; ``stop`` is passed on to all ranks."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self.graphs is None else self.graphs.lr
        if self.graphs is not None:
            return StepOutcome(self.graphs(x, target, task, lr, stop))
        return StepOutcome(self._compute(x, target, task, torch.full((), float(stop), device=x.device)))

    def _compute(self, x: Tensor, target: Tensor, task: str, stop: Tensor) -> Tensor:
        """Take a step and return its numbers, as ``StepOutcome`` says; nothing here reads what depends on the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        config = self.config
        with nullcontext() if self.half is None else self.half.instead():
            y, feats = self.forward(x, task, return_features=True)
        total, l1, contrastive = pretrain_loss(
            y, target, feats, lam=config.lam, mode=config.contrastive, scope=config.contrastive_scope
        )
        (total * self.scale.factor if self.scale.enabled else total).backward()
        self.gradients.finish()

        numbers = torch.stack([total.detach(), l1, contrastive, stop.to(l1.dtype)]).float()  # [4]
        if self.dist_info.world_size > 1:
            dist.all_reduce(numbers)
            numbers /= self.dist_info.world_size
        norm = self._update(numbers)
        return torch.cat([numbers, torch.stack([norm, self.scale.used])])

    def state_dict(self) -> dict[str, Any]:
        """Return what a step changes, for a checkpoint."""
        optimizer = self.optimizer.state_dict()
        for group in optimizer["param_groups"]:
            group["lr"] = float(group["lr"])
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": optimizer,
            "scaler": self.scale.state_dict(),
        }

    def check_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Refuse the training state of another network or optimizer; nothing is loaded.

        Raises:
            CheckpointError: names the file by ``name``, and the first keys that differ.
        """
        advice = "; give the same preset, tasks and settings"
        for own, given in ((self.model, state["model"]), (self.ema, state.get("ema"))):
            if own is not None and given is not None:
                check_weights(name, given, own.state_dict(), "holds another network", advice)
        groups = (state["optimizer"]["param_groups"], self.optimizer.param_groups)
        parameters, own_parameters = ([len(group["params"]) for group in part] for part in groups)
        if parameters != own_parameters:
            raise CheckpointError(f"{name}: its optimizer has {parameters} parameters, this run {own_parameters}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` has returned, but for the optimizer's settings, which stay those of this run.

        Where the state has no moving average, it starts from the state's weights.
        """
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["model"] if state.get("ema") is None else state["ema"])
        (group,) = self.optimizer.param_groups
        groups = [{**group, "params": list(range(len(group["params"])))}]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.scale.load_state_dict(state["scaler"])
        if self.graphs is not None:
            self.graphs.forget()

    def _update(self, numbers: Tensor) -> Tensor:
        """Step Adam, unless anything is not finite. Returns the norm of the (unscaled) gradient."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads).float() / self.scale.factor
        bad = ~(norm.isfinite() & numbers.isfinite().all())
        divisor = self.scale.factor.clone() if self.scale.enabled else None
        if self.config.clip_grad:
            shrink = (norm / self.config.clip_grad).clamp(min=1.0)
            divisor = shrink if divisor is None else divisor * shrink
        # The protocol of torch.amp.GradScaler with fused optimizers: divide by the one, do nothing if the other is 1.
        self.optimizer.grad_scale = divisor  # type: ignore[union-attr]
        self.optimizer.found_inf = bad.float()  # type: ignore[union-attr]
        self.optimizer.step()
        self.scale.update(bad)
        if self.ema is not None:
            weights = [p.detach() for p in self.model.parameters()]
            torch._foreach_lerp_(list(self.ema.parameters()), weights, 1 - self.config.ema)
        return norm
