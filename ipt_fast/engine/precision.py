"""How a step computes on its device: fp32, bf16 or fp16, the loss scale of fp16, and activation recomputation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ipt_fast.data.cores import local_ranks
from ipt_fast.engine.config import ConfigError, TrainConfig
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.model import IPTConfig
from ipt_fast.ops import _common

Precision = Literal["fp32", "bf16", "fp16"]
# Of the device's memory that hidden layers and norms may take. All else that a step keeps is half as much again.
_HIDDEN_SHARE = 1 / 6


def resolve(config: TrainConfig, dist_info: DistInfo) -> tuple[Precision, bool]:
    """Return precision and activation recomputation of this rank's share of the batch on its device."""
    precision = resolve_precision(config.precision, dist_info.device)
    check_tf32(config, dist_info.device)
    batch_size = config.batch_size // dist_info.world_size
    memory = device_memory(dist_info.device)
    return precision, resolve_recompute(config.recompute, config.model, batch_size, precision, memory)


def resolve_precision(choice: str, device: torch.device) -> Precision:
    """Return the precision that a choice comes to on a device.

    ``auto``: bf16 on GPUs (sm_80 and newer) and CPUs that compute in it, fp16 on older GPUs, fp32 on older CPUs.

    Raises:
        ConfigError: fp16 on a CPU, where it is slow and has no loss scaling to lean on.
    """
    if choice == "auto":
        if device.type != "cuda":
            return "bf16" if _common.has_fast_bf16() else "fp32"
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if choice == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs a GPU (found {device.type}); use bf16 or fp32")
    if choice not in ("fp32", "bf16", "fp16"):
        raise ConfigError(f"precision {choice!r} is not known; choose one of auto, fp32, bf16, fp16")
    return choice  # type: ignore[return-value]


def check_tf32(config: TrainConfig, device: torch.device) -> None:
    """Refuse TF32 where there is none.

    Raises:
        ConfigError: names the device.
    """
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if config.tf32 and not capable:
        found = device.type if device.type != "cuda" else torch.cuda.get_device_name(device)
        raise ConfigError(f"tf32=true needs an NVIDIA GPU of capability 8.0 or newer (found {found}); leave it out")


@contextmanager
def matmul_arithmetic(tf32: bool) -> Iterator[None]:
    """Compute float32 GEMMs in TF32 or not, and sum 16-bit ones in float32 alone, inside the context.

    cuBLAS may add the parts of a split 16-bit GEMM up in 16 bits, in which sums over many tokens overflow in fp16.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    wanted = [(matmul, "allow_tf32", tf32), (cudnn, "allow_tf32", tf32)]
    wanted += [(matmul, f"allow_{kind}_reduced_precision_reduction", False) for kind in ("fp16", "bf16")]
    before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def resolve_recompute(choice: str, model: IPTConfig, batch_size: int, precision: Precision, memory: int) -> bool:
    """Return whether the backward recomputes hidden layers: "on", "off", or "auto", where they would not fit well.

    ``batch_size`` is that of this rank, ``memory`` the bytes of ``device_memory``.
    """
    return choice == "on" or (choice == "auto" and batch_size * hidden_bytes(model, precision) > _HIDDEN_SHARE * memory)


def hidden_bytes(model: IPTConfig, precision: Precision) -> int:
    """Return the bytes of one sample's hidden layers, and of its normalised tokens with their statistics."""
    hidden, norms = 2 * model.num_layers + model.mlp, 5 * model.num_layers
    elements = (hidden * model.ffn_ratio + norms) * model.num_tokens * model.embed_dim
    return elements * (4 if precision == "fp32" else 2) + norms * model.num_tokens * 8


def device_memory(device: torch.device) -> int:
    """Return the bytes of the device's memory; on a CPU this rank's share of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_ranks()


class LossScale:
    """Keeps fp16 gradients off zero: doubled after ``interval`` good steps, halved after a bad one; on the device.

    ``factor`` multiplies the loss; ``used`` is the factor of the last step. Both are 1 where scaling is off.
    """

    def __init__(self, enabled: bool, device: torch.device, start: float = 2.0**16, interval: int = 2000):
        self.enabled, self.interval = enabled, interval
        self.factor = torch.tensor(start if enabled else 1.0, dtype=torch.float32, device=device)
        self.used = self.factor.clone()
        self.good = torch.tensor(0.0, dtype=torch.float32, device=device)  # good steps since the last change

    def update(self, bad: Tensor) -> None:
        """Take in the outcome of a step, in place; ``bad`` is a bool scalar on the device."""
        if not self.enabled:
            return
        self.used.copy_(self.factor)
        good = torch.where(bad, 0.0, self.good + 1)
        grow = good >= self.interval
        self.factor.copy_(torch.where(bad, self.factor * 0.5, torch.where(grow, self.factor * 2, self.factor)))
        self.good.copy_(torch.where(grow, 0.0, good))

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {"enabled": self.enabled, "factor": float(self.factor), "good": float(self.good)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; a checkpoint of a run without scaling leaves a fresh scale as it is."""
        if self.enabled and state.get("enabled"):
            self.factor.fill_(state["factor"])
            self.good.fill_(state["good"])
