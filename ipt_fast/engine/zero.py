"""Adam with its moments split over the ranks (ZeRO-1): each updates its share of the weights and sends it round."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer


class ShardedAdam(ZeroRedundancyOptimizer):
    """torch's fused Adam on this rank's share, with its state dict: a run resumes with and without.

    ``consolidate_state_dict()``, on all ranks, comes before rank 0's ``state_dict()``. Settings are those of Adam.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], **settings: Any):
        super().__init__(parameters, torch.optim.Adam, fused=True, **settings)

    @property
    def grad_scale(self) -> Tensor | None:
        """What Adam divides the gradients by; see ``optimizer``."""
        return self.optim.grad_scale

    @grad_scale.setter
    def grad_scale(self, value: Tensor | None) -> None:
        self.optim.grad_scale = value

    @property
    def found_inf(self) -> Tensor | None:
        """1 where Adam leaves the step out."""
        return self.optim.found_inf

    @found_inf.setter
    def found_inf(self, value: Tensor | None) -> None:
        self.optim.found_inf = value

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this rank's share of the state of an Adam of all parameters."""
        super().load_state_dict({**state_dict, "state": dict(state_dict["state"])})
        self.state.clear()  # a second copy of the share
        for parameter, state in self.optim.state.items():
            state["step"] = state["step"].to(parameter.device)  # where fused Adam needs it
