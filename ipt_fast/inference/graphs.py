"""Windows through a network as one CUDA graph a task, always of one number of windows."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ipt_fast.recording import Recordings


class WindowGraphs:
    """Calls a network on ``count`` windows at once, whatever number is given: recorded on a GPU, called on a CPU.

    Args:
        compute: (x [count, C, S, S], number of the task) -> [count, C', rS, rS]; it reads weights that stay where they
            are.
        count: windows at once; fewer are filled up with black ones.
        device: of the windows.
    """

    def __init__(self, compute: Callable[[Tensor, int], Tensor], count: int, device: torch.device):
        self.count = count
        self._recordings = Recordings(lambda key, x: compute(x, int(key.split()[0])), device, "windows")

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x [B, C, S, S] -> [B, C', rS, rS]."""
        outputs = []
        for part in x.split(self.count):
            full = F.pad(part, (0, 0, 0, 0, 0, 0, 0, self.count - len(part))) if len(part) < self.count else part
            outputs.append(self._recordings(f"{t} {x.dtype}", full)[: len(part)])
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
