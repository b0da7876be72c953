"""fp32, bf16 or fp16, and the loss scale that fp16 needs."""

from typing import Any, Literal

import torch
from torch import Tensor

from ipt_fast.engine.config import ConfigError
from ipt_fast.ops import _common

Precision = Literal["fp32", "bf16", "fp16"]


def resolve_precision(choice: str, device: torch.device) -> Precision:
    """``auto``: bf16 on GPUs (sm_80 and newer) and CPUs that compute in it, fp16 on older GPUs, fp32 on older CPUs.

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


class LossScale:
    """Keeps fp16 gradients off zero: doubled after ``interval`` good steps, halved after a bad one; on the device.

    ``factor`` multiplies the loss; ``used`` is the factor of the last step. Both are 1 where scaling is off.
    """

    def __init__(self, enabled: bool, device: torch.device, start: float = 2.0**16, interval: int = 2000):
        self.enabled, self.interval = enabled, interval
        self.factor = torch.tensor(start if enabled else 1.0, device=device)
        self.used = self.factor.clone()
        self.good = torch.tensor(0.0, device=device)  # good steps since the last change

    def update(self, bad: Tensor) -> None:
        """After a step; ``bad`` is a bool scalar on the device."""
        if not self.enabled:
            return
        self.used = self.factor.clone()
        self.good = torch.where(bad, 0.0, self.good + 1)
        grow = self.good >= self.interval
        self.factor = torch.where(bad, self.factor * 0.5, torch.where(grow, self.factor * 2, self.factor))
        self.good = torch.where(grow, 0.0, self.good)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"enabled": self.enabled, "factor": float(self.factor), "good": float(self.good)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; a checkpoint of a run without scaling leaves a fresh scale as it is."""
        if self.enabled and state.get("enabled"):
            self.factor.fill_(state["factor"])
            self.good.fill_(state["good"])
