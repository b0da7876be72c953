"""How a benchmark measures one contender at one shape, and declares the work that it had to do.

    @pytest.mark.parametrize("contender", ["eager", "sdpa", "triton"])
    def bench_forward(measure, device, contender):
        q = torch.randn(8, 256, 576, device=device)
        call = lambda: patch_attention(q, q, q, num_heads=12, impl=contender)
        work = Work(flops=4 * 8 * 256 * 256 * 576, bytes=4 * q.nbytes)
        measure(call, op="patch_attention", contender=contender, shape="B=8 N=256", dtype=q.dtype, work=work)

``measure`` and ``device`` are fixtures of ``bench/conftest.py``. A contender that cannot run calls ``pytest.skip`` with
the reason; the report lists it as not measured. The contender of a shape whose name is ``baseline`` (of the same dtype
where there is one; "plain float32" binds the dtype too) is what the others are compared with.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

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
    *,
    device: torch.device,
    small: bool,
    op: str,
    contender: str,
    shape: str,
    dtype: torch.dtype | str,
    work: Work,
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
    _wait(device)
    peak = peak_bytes(call, device) if memory else None
    captured = device.type == "cuda" and capture
    seconds = _time(call, device)
    calls = max(1, math.ceil(_ROUND_SECONDS / seconds))
    least, most = _ROUNDS[small]
    rounds = min(most, max(least, int(_CASE_SECONDS[small] / (seconds * calls))))

    def plain_round() -> None:
        for _ in range(calls):
            call()
        _wait(device)

    one_round = plain_round
    if captured:
        graph = _capture(call, calls)
        captured = graph is not None
        if graph is not None:

            def one_round() -> None:
                graph.replay()
                torch.cuda.synchronize(device)

    benchmark.extra_info.update(
        op=op,
        contender=contender,
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        direction=direction,
        baseline=baseline,
        device=device.type,
        flops=work.flops,
        bytes=work.bytes,
        calls_per_round=calls,
        cuda_graph=captured,
        peak_bytes=peak,
        gemm_dtype="" if gemm_dtype is None else str(gemm_dtype).removeprefix("torch."),
    )
    # The calls above have warmed a slow case up.
    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=int(seconds < 0.3), iterations=1)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the most bytes that PyTorch's allocator held during ``call`` beyond what it held before, or None."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
        del result
    traced = getattr(profiler.profiler, "kineto_results", None)
    if traced is None:
        return None
    changes = [(event.start_ns(), event.nbytes()) for event in traced.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


def _time(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    _wait(device)
    return max(time.perf_counter() - start, 1e-7)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _capture(call: Callable[[], object], calls: int) -> "torch.cuda.CUDAGraph | None":
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
