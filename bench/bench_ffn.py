"""Is the feed-forward network with its own backward as fast as PyTorch's own, and what does recomputation cost?"""

import pytest
import torch

from bench.case import Work
from ipt_fast.ops.ffn import ffn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEPT = "fused, hidden layer kept"


def pytest_generate_tests(metafunc):
    metafunc.parametrize("dtype", DTYPES)
    contenders = ["eager", "fused", "torch.compile"] + [KEPT] * (metafunc.function is bench_training)
    metafunc.parametrize("contender", contenders)


@pytest.fixture
def inputs(device, small, dtype):
    """Make a layer of "base"; of "tiny" where the suite is to be short."""
    D, B = (144, 2) if small else (576, 32 if device.type == "cuda" else 4)
    shapes = [(B, 256, D), (D,), (D,), (4 * D, D), (4 * D,), (D, 4 * D), (D,)]
    return [torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=True) for shape in shapes]


def make_call(contender):
    impl, recompute = "fused" if contender.startswith("fused") else "eager", contender != KEPT
    function = lambda *t: ffn(*t, recompute=recompute, impl=impl)  # noqa: E731
    return torch.compile(function) if contender == "torch.compile" else function


def describe(inputs, contender, dtype, passes):
    (B, N, D), size = inputs[0].shape, inputs[0].element_size()
    work = Work(flops=passes * 16 * B * N * D * D, bytes=passes * size * (2 * B * N * D + 8 * D * D))
    return {"op": "ffn", "contender": contender, "shape": f"B={B} N={N} D={D}", "dtype": dtype, "work": work}


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
