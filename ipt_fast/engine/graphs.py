"""A step as one CUDA graph a task: the host launches one thing instead of a thousand.

A step reads its batch, the learning rate and the stop flag from buffers that stay where they are, and its state is
changed in place; so that a recording of it is the step. What is recorded can be called as well, which a CPU does.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ipt_fast.engine.config import ConfigError, TrainConfig
from ipt_fast.engine.distributed import DistInfo

# Steps of a task that are launched one by one before it is recorded: they make Adam's state and compile kernels.
_WARM_UP = 2
_log = logging.getLogger(__name__)

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


@dataclass
class _Recording:
    """What a task's graph reads and writes."""

    x: Tensor
    target: Tensor
    steps: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    numbers: Tensor | None = None


class StepGraphs:
    """Takes steps from buffers: recorded on a GPU, called on a CPU.

    Args:
        compute: the step; it reads ``lr`` as the optimizer's learning rate.
        device: of the model.
    """

    def __init__(self, compute: Compute, device: torch.device):
        self.compute, self.device = compute, device
        self.lr, self.stop = torch.zeros(2, dtype=torch.float32, device=device).unbind()
        self._recordings: dict[str, _Recording] = {}
        self._failed = device.type != "cuda"
        if not self._failed:
            self._stream = torch.cuda.Stream(device)  # never the default one, which a recording may not wait for
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, x: Tensor, target: Tensor, task: str, lr: float, stop: bool) -> Tensor:
        """Take a step and return its numbers; the arguments are copied to where the step reads them."""
        self.lr.fill_(lr)
        self.stop.fill_(float(stop))
        if task not in self._recordings:
            self._recordings[task] = _Recording(torch.empty_like(x), torch.empty_like(target))
        own = self._recordings[task]
        own.x.copy_(x)
        own.target.copy_(target)
        if not self._failed and own.graph is None and own.steps >= _WARM_UP:
            self._record(own, task)
        own.steps += 1
        if own.graph is None:
            return self._launch(own, task)
        own.graph.replay()
        assert own.numbers is not None
        return own.numbers.clone()  # the next step of the task writes there

    def forget(self) -> None:
        """Drop all recordings: the state is in other memory now."""
        self._recordings.clear()

    def _launch(self, own: _Recording, task: str) -> Tensor:
        if self.device.type != "cuda":
            return self.compute(own.x, own.target, task, self.stop)
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            numbers = self.compute(own.x, own.target, task, self.stop)
        current.wait_stream(self._stream)
        return numbers.clone()

    def _record(self, own: _Recording, task: str) -> None:
        """Record a step, which takes none. The loader's threads may go on allocating memory meanwhile."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                own.numbers = self.compute(own.x, own.target, task, self.stop)
        except RuntimeError as error:
            self._failed = True
            _log.warning("steps are launched one by one: task %s could not be recorded: %s", task, error)
        else:
            own.graph = graph
