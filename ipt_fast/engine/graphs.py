"""A step as one CUDA graph a task: the host launches one thing instead of a thousand.

A step reads its batch, the learning rate and the stop flag from buffers that stay where they are, and its state is
changed in place; so that a recording of it is the step. What is recorded can be called as well, which a CPU does.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ipt_fast.engine.config import ConfigError, TrainConfig
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.recording import Recordings

Compute = Callable[[Tensor, Tensor, str, Tensor], Tensor]  # (x, target, task, stop) -> numbers


def unavailable_reason(config: TrainConfig, dist_info: DistInfo) -> str | None:
    """Return why steps cannot be recorded, as the end of a sentence, or None."""
    if dist_info.device.type != "cuda":
        return f"needs a CUDA device (found {dist_info.device.type})"
    if dist_info.world_size > 1:
        return f"does not record the exchange between ranks (found {dist_info.world_size} ranks)"
    if config.compile:
        return f"does not go with compile={str(config.compile).lower()}"
    return "does not go with optimizer=apex" if config.optimizer == "apex" else None


def wanted(config: TrainConfig, dist_info: DistInfo) -> bool:
    """Return whether the setting comes to recorded steps.

    Raises:
        ConfigError: graphs=on where steps cannot be recorded.
    """
    reason = unavailable_reason(config, dist_info)
    if config.graphs == "on" and reason:
        raise ConfigError(f"graphs=on {reason}; leave it out")
    return config.graphs != "off" and reason is None


class StepGraphs:
    """Takes steps from buffers: recorded on a GPU, called on a CPU.

    Args:
        compute: the step; it reads ``lr`` as the optimizer's learning rate.
        device: of the model.
    """

    def __init__(self, compute: Compute, device: torch.device):
        self.lr, self.stop = torch.zeros(2, dtype=torch.float32, device=device).unbind()
        self._recordings = Recordings(lambda task, x, y: compute(x, y, task, self.stop), device, "steps")

    def __call__(self, x: Tensor, target: Tensor, task: str, lr: float, stop: bool) -> Tensor:
        """Take a step and return its numbers; the arguments are copied to where the step reads them."""
        self.lr.fill_(lr)
        self.stop.fill_(float(stop))
        return self._recordings(task, x, target)

    def forget(self) -> None:
        """Drop all recordings: the state is in other memory now."""
        self._recordings.forget()
