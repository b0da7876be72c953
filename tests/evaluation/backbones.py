"""Files as PyTorch's model zoo gives them, with weights that a formula makes: the real ones are 0.2 and 0.5 GB."""

from pathlib import Path

import torch
from torch import nn

from ipt_fast.evaluation.perceptual import alexnet, vgg16


def fill(network: nn.Module) -> None:
    """Set weights and biases by a formula, the same in every version of torch."""
    for p in network.parameters():
        n = torch.arange(p.numel(), dtype=torch.float64)
        scale = 2 * p[0].numel() ** -0.5 if p.dim() > 1 else 0.05
        p.data.copy_((torch.sin(n * n % 97) * scale).view(p.shape))


def write_backbone(path: Path, name: str) -> Path:
    """Write the features of "alexnet" or "vgg16", and a classifier that nobody needs."""
    features, _ = alexnet() if name == "alexnet" else vgg16()
    fill(features)
    weights = {f"features.{key}": value for key, value in features.state_dict().items()}
    torch.save({**weights, "classifier.1.weight": torch.zeros(2, 2)}, path)
    return path
