"""Whether the hidden layers of a step are kept for the backward or made again there."""

import os

import torch

from ipt_fast.data.cores import local_ranks
from ipt_fast.engine.precision import Precision
from ipt_fast.model import IPTConfig

# Of the device's memory that hidden layers may take. All else that a step keeps is two to three times as much.
_SHARE = 1 / 6


def resolve_recompute(
    choice: str, model: IPTConfig, batch_size: int, precision: Precision, device: torch.device
) -> bool:
    """Whether they are made again: "on", "off", or "auto", which is where they would take too much of the memory.

    Args:
        batch_size: of this rank.
    """
    if choice != "auto":
        return choice == "on"
    return batch_size * hidden_bytes(model, precision) > _SHARE * _memory(device)


def hidden_bytes(model: IPTConfig, precision: Precision) -> int:
    """Bytes of one sample's hidden layers."""
    layers = 2 * model.num_layers + model.mlp
    values = layers * model.num_tokens * model.ffn_ratio * model.embed_dim
    return values * (4 if precision == "fp32" else 2)


def _memory(device: torch.device) -> int:
    """Bytes of the device; on a CPU this rank's share of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_ranks()
