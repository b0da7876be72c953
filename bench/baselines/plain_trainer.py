"""A straightforward trainer of IPT: PyTorch's own modules, Eq. 4 to 6 of the paper written out, torch.optim.Adam.

What the product's training has to be equal to, up to rounding, on the same batches.
"""

import torch
from torch import Tensor

from bench.baselines.plain_ipt import plain_copy
from ipt_fast.model import IPT


def supervised_loss(output: Tensor, target: Tensor) -> Tensor:
    """Eq. 4: the mean absolute difference. Both [B, 3, H, W], pixels 0..255."""
    return (output - target).abs().mean()


def contrastive_loss(features: Tensor) -> Tensor:
    """Eq. 5, image by image. features [B, N, D]; d is the cosine similarity."""
    f = torch.nn.functional.normalize(features, dim=2)
    losses = []
    for j in range(len(f)):
        denominators = sum((f[j] @ f[k].T).exp() for k in range(len(f)) if k != j)  # [N, N]
        losses.append(-((f[j] @ f[j].T).exp() / denominators).log().mean())
    return torch.stack(losses).mean()


class PlainTrainer:
    """Trains a plain copy of a network in float32; Eq. 6 with the weight ``lam``."""

    def __init__(self, model: IPT, lam: float):
        self.model, self.lam = plain_copy(model), lam
        self.optimizer = torch.optim.Adam(p for p in self.model.parameters() if p.requires_grad)

    def step(self, x: Tensor, target: Tensor, task: str, lr: float) -> float:
        """Take one step; returns the loss before it. x [B, 3, S, S], target [B, 3, rS, rS]."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        output, features = self.model(x, task, return_features=True)
        loss = supervised_loss(output, target) + self.lam * contrastive_loss(features)
        loss.backward()
        self.optimizer.step()
        return loss.item()
