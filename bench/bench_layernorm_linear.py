"""Is LayerNorm and linear that recomputes the norm in the backward as fast as PyTorch's own, and what does it keep?"""

import pytest
import torch

from bench.case import DIRECTIONS, DTYPES, Work, measure_layer
from ipt_fast.ops.layernorm_linear import backend_status, layernorm_linear


@pytest.mark.parametrize("contender", ["eager", "fused", "triton", "torch.compile"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def bench_layernorm_linear(measure, device, small, direction, dtype, contender):
    """Time the packed projection of a layer of "base"; of "tiny" where the suite is to be short."""
    D, B, N = (144, 2, 256) if small else (576, 32 if device.type == "cuda" else 4, 256)
    impl = "eager" if contender == "torch.compile" else contender
    if reason := backend_status(device)[impl]:
        pytest.skip(f"{impl} {reason}")
    shapes = [(B, N, D), (D,), (D,), (3 * D, D)]
    inputs = [torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=True) for shape in shapes]

    def function(*tensors):
        return layernorm_linear(*tensors, impl=impl)

    work = Work(flops=6 * B * N * D * D, bytes=inputs[0].element_size() * (4 * B * N * D + 3 * D * D))
    names = {"op": "layernorm_linear", "contender": contender, "shape": f"B={B} N={N} D={D} to {3 * D}", "dtype": dtype}
    measure_layer(measure, function, inputs, work, **names, direction=direction)
