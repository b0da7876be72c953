"""Is LayerNorm and linear that recomputes the norm in the backward as fast as PyTorch's own, and what does it keep?"""

import pytest
import torch

from bench.case import Work
from ipt_fast.ops.layernorm_linear import layernorm_linear

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pytest_generate_tests(metafunc):
    metafunc.parametrize("dtype", DTYPES)
    metafunc.parametrize("contender", ["eager", "fused", "torch.compile"])


@pytest.fixture
def inputs(device, small, dtype):
    """Make the packed projection of a layer of "base"; of "tiny" where the suite is to be short."""
    D, B = (144, 2) if small else (576, 32 if device.type == "cuda" else 4)
    shapes = [(B, 256, D), (D,), (D,), (3 * D, D)]
    return [torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=True) for shape in shapes]


def make_call(contender):
    function = lambda *t: layernorm_linear(*t, impl="fused" if contender == "fused" else "eager")  # noqa: E731
    return torch.compile(function) if contender == "torch.compile" else function


def describe(inputs, contender, dtype, passes):
    (B, N, D), D_out, size = inputs[0].shape, len(inputs[3]), inputs[0].element_size()
    work = Work(flops=passes * 2 * B * N * D * D_out, bytes=passes * size * (B * N * (D + D_out) + D * D_out))
    shape = f"B={B} N={N} D={D} to {D_out}"
    return {"op": "layernorm_linear", "contender": contender, "shape": shape, "dtype": dtype, "work": work}


def bench_forward(measure, inputs, contender, dtype):
    function = make_call(contender)

    def call():
        with torch.no_grad():
            return function(*inputs)

    measure(call, **describe(inputs, contender, dtype, 1))


def bench_training(measure, inputs, contender, dtype):
    function = make_call(contender)
    upstream = torch.randn_like(function(*inputs))
    call = lambda: torch.autograd.grad(function(*inputs), inputs, upstream)  # noqa: E731
    measure(call, **describe(inputs, contender, dtype, 3), direction="forward+backward")
