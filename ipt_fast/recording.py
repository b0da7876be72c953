"""A function of tensors as one CUDA graph a key: the host launches one thing instead of a thousand.

The function reads its inputs from buffers that stay where they are; so that a recording of it is the function. What is
recorded can be called as well, which a CPU does.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Calls with a key that are launched one by one before it is recorded: they compile kernels and make Adam's state.
_WARM_UP = 2
_log = logging.getLogger(__name__)


@dataclass
class _Recording:
    """What a key's graph reads and writes."""

    inputs: tuple[Tensor, ...]
    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    output: Tensor | None = None


class Recordings:
    """Calls a function on buffers: recorded on a GPU, called on a CPU.

    Args:
        compute: (key, inputs) -> output; what it changes beside that it changes in place.
        device: of the inputs.
        what: is recorded, for the log: "steps".
    """

    def __init__(self, compute: Callable[..., Tensor], device: torch.device, what: str):
        self.compute, self.device, self.what = compute, device, what
        self._recordings: dict[str, _Recording] = {}
        self._failed = device.type != "cuda"
        if not self._failed:
            self._stream = torch.cuda.Stream(device)  # never the default one, which a recording may not wait for
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, key: str, *inputs: Tensor) -> Tensor:
        """Return the output; inputs are copied to where the function reads them, of the first call's shapes."""
        if key not in self._recordings:
            self._recordings[key] = _Recording(tuple(torch.empty_like(x) for x in inputs))
        own = self._recordings[key]
        for buffer, x in zip(own.inputs, inputs, strict=True):
            buffer.copy_(x)
        if not self._failed and own.graph is None and own.calls >= _WARM_UP:
            self._record(own, key)
        own.calls += 1
        if own.graph is None:
            return self._launch(own, key)
        own.graph.replay()
        assert own.output is not None
        return own.output.clone()  # the next call with the key writes there

    def forget(self) -> None:
        """Drop all recordings: what the function reads beside its inputs is in other memory now."""
        self._recordings.clear()

    def _launch(self, own: _Recording, key: str) -> Tensor:
        if self.device.type != "cuda":
            return self.compute(key, *own.inputs)
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = self.compute(key, *own.inputs)
        current.wait_stream(self._stream)
        return output.clone()

    def _record(self, own: _Recording, key: str) -> None:
        """Record a call, which is none. Other threads may go on allocating memory meanwhile."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                own.output = self.compute(key, *own.inputs)
        except RuntimeError as error:
            self._failed = True
            _log.warning("%s are launched one by one: %s could not be recorded: %s", self.what, key, error)
        else:
            own.graph = graph
