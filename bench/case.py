"""How a benchmark measures one contender at one shape, and declares the work that it had to do.

    @pytest.mark.parametrize("contender", ["eager", "sdpa", "triton"])
    def bench_forward(measure, device, contender):
        q = torch.randn(8, 256, 576, device=device)
        call = lambda: patch_attention(q, q, q, num_heads=12, impl=contender)
        work = Work(flops=4 * 8 * 256 * 256 * 576, bytes=4 * q.nbytes)
        measure(call, "patch_attention", contender, "B=8 N=256", q.dtype, work)

``measure`` and ``device`` are fixtures of ``bench/conftest.py``. A contender that cannot run calls ``pytest.skip`` with
the reason; the report lists it as not measured. The contender of a shape whose name is ``baseline`` (of the same dtype
where there is one; "plain float32" binds the dtype too) is what the others are compared with.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DIRECTIONS = ("forward", "forward+backward")
# A round long enough for the clock, and a case short enough for a suite.
_ROUND_SECONDS = 2e-3
_CASE_SECONDS = {False: 1.0, True: 0.15}
_ROUNDS = {False: (3, 60), True: (2, 10)}


@dataclass(frozen=True)
class Work:
    """The least that any implementation must do: ``flops`` (a multiply-add is two), ``bytes`` read and written once."""

    flops: float = 0.0
    bytes: float = 0.0


def measure_call(
    benchmark: Any,
    call: Callable[[], object],
    op: str,
    contender: str,
    shape: str,
    dtype: torch.dtype | str,
    work: Work,
    *,
    device: torch.device,
    small: bool,
    direction: str = "forward",
    baseline: str = "eager",
    memory: bool = True,
    capture: bool = True,
    gemm_dtype: torch.dtype | None = None,
) -> None:
    """Time ``call`` and note what it was.

    On CUDA several calls are captured in one CUDA graph, so that Python's own time is not measured (a training loop
    captures too); ``capture=False`` for calls that cannot be captured, which are then launched one by one.

    Args:
        benchmark: pytest-benchmark's fixture.
        call: one whole run of the contender; for "forward+backward" it includes the backward, made with
            ``torch.autograd.grad`` so that no gradients pile up.
        small: a few rounds only.
        op, contender, shape, dtype, direction: the names under which the result is reported.
        work: what the operation needs at this shape, the same for all contenders.
        baseline: name of the contender that the others are compared with.
        gemm_dtype: dtype of the GEMMs where it is not ``dtype``: that one's ceiling counts.
        memory: also measure the most memory that the call holds beyond what was there before.
    """
    call()
    wait(device)
    peak = peak_bytes(call, device) if memory else None
    seconds = max(seconds_of(call, device), 1e-7)
    calls = max(1, math.ceil(_ROUND_SECONDS / seconds))
    least, most = _ROUNDS[small]
    rounds = min(most, max(least, int(_CASE_SECONDS[small] / (seconds * calls))))
    graph = _capture(call, calls) if capture and device.type == "cuda" else None

    def one_round() -> None:
        if graph is not None:
            graph.replay()
        else:
            for _ in range(calls):
                call()
        wait(device)

    names = {"op": op, "contender": contender, "shape": shape, "direction": direction, "baseline": baseline}
    dtypes = {"dtype": str(dtype), "gemm_dtype": "" if gemm_dtype is None else str(gemm_dtype)}
    measured = {"calls_per_round": calls, "cuda_graph": graph is not None, "peak_bytes": peak}
    dtypes = {key: name.removeprefix("torch.") for key, name in dtypes.items()}
    benchmark.extra_info.update(names | dtypes | asdict(work) | measured)
    # The calls above have warmed a slow case up.
    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=int(seconds < 0.3), iterations=1)


def outcome(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor | None) -> Sequence[Tensor]:
    """Return the output alone, computed without autograd; where ``upstream`` is given the gradients of all inputs."""
    if upstream is None:
        with torch.no_grad():
            return (function(*inputs),)
    return torch.autograd.grad(function(*inputs), inputs, upstream)


def measure_layer(
    measure: Callable[..., None], function: Callable[..., Tensor], inputs: Sequence[Tensor], work: Work, **names: str
) -> None:
    """Measure a differentiable ``function``, whose backward is twice the ``work`` of its forward, under ``names``."""
    if names["contender"] == "torch.compile":
        function = torch.compile(function)
    training = names["direction"] == "forward+backward"
    upstream = torch.randn_like(function(*inputs)) if training else None
    work = Work(3 * work.flops, 3 * work.bytes) if training else work
    measure(lambda: outcome(function, inputs, upstream), work=work, **names)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that PyTorch's allocator held during ``call`` beyond what it held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = (event.nbytes() for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(changes, initial=0))


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Time one call."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait until what was launched on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _capture(call: Callable[[], object], calls: int) -> "torch.cuda.CUDAGraph | None":
    """Capture ``calls`` calls in one graph; None where they cannot be captured."""
    # The warm-up on a side stream is what torch.cuda.graph's documentation asks for.
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph
