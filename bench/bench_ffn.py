"""Is the feed-forward network with its own backward as fast as PyTorch's own, and what does recomputation cost?"""

import pytest
import torch

from bench.case import DIRECTIONS, DTYPES, Work, measure_layer
from ipt_fast.ops.ffn import backend_status, ffn

KEPT = "fused, hidden layer kept"
CONTENDERS = ["eager", "fused", "triton", "torch.compile"]
CASES = [(direction, dtype, contender) for direction in DIRECTIONS for dtype in DTYPES
         for contender in CONTENDERS + [KEPT] * (direction != "forward")]  # fmt: skip


@pytest.mark.parametrize("direction, dtype, contender", CASES)
def bench_ffn(measure, device, small, direction, dtype, contender):
    """Time a layer of "base"; of "tiny" where the suite is to be short."""
    D, B, N = (144, 2, 256) if small else (576, 32 if device.type == "cuda" else 4, 256)
    shapes = [(B, N, D), (D,), (D,), (4 * D, D), (4 * D,), (D, 4 * D), (D,)]
    inputs = [torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=True) for shape in shapes]
    impl = {"torch.compile": "eager", KEPT: "fused"}.get(contender, contender)
    if reason := backend_status(device)[impl]:
        pytest.skip(f"{impl} {reason}")

    def function(*tensors):
        return ffn(*tensors, recompute=contender != KEPT, impl=impl)

    work = Work(flops=16 * B * N * D * D, bytes=inputs[0].element_size() * (2 * B * N * D + 8 * D * D))
    names = {"op": "ffn", "contender": contender, "shape": f"B={B} N={N} D={D}", "dtype": dtype}
    measure_layer(measure, function, inputs, work, **names, direction=direction)
