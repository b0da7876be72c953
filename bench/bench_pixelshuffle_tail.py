"""How much faster is an EDSR-like tail as one convolution with an exact frame than as the chain of convolutions?"""

import pytest
import torch
from torch import nn

from bench.case import Work
from ipt_fast.ops.pixelshuffle_tail import backend_status, collapse_tail, pixelshuffle_tail

C, OUT, SIDE = 64, 3, 48
SCALES = {"x2": (2,), "x3": (3,), "x4": (2, 2)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pytest_generate_tests(metafunc):
    metafunc.parametrize("dtype", DTYPES)
    # "prepared": collapse_tail, composed once; the others compose in every call.
    contenders = ["eager", "collapsed"] + ["triton", "prepared"] * (metafunc.function is bench_inference)
    metafunc.parametrize("contender", contenders)
    metafunc.parametrize("scale", SCALES)


def make_convs(scales, device, dtype):
    widths = [C * r * r for r in scales] + [OUT]
    return nn.ModuleList(nn.Conv2d(C, width, 3, padding=1) for width in widths).to(device, dtype)


def skip_where_it_cannot_run(device, contender, dtype):
    if reason := backend_status(device).get(contender, None if contender == "prepared" else "is no backend"):
        pytest.skip(f"{contender} {reason}")
    if device.type == "cuda" and dtype == "float32" and contender == "triton":
        pytest.skip("triton serves 16-bit tensors")


def least(x, scales, weights):
    """Read x once, write the image once; the multiplications of the collapsed kernel."""
    B, R = x.shape[0], 1
    for r in scales:
        R *= r
    width = {2: 4, 3: 4, 4: 5}[R]  # taps that a pixel of the output depends on, along one axis
    cells = B * SIDE * SIDE
    return Work(
        flops=2 * cells * OUT * R * R * C * width * width,
        bytes=x.nbytes + cells * OUT * R * R * x.element_size() + weights * x.element_size(),
    )


def bench_inference(measure, device, dtype, contender, scale):
    skip_where_it_cannot_run(device, contender, dtype)
    scales = SCALES[scale]
    B = 32 if device.type == "cuda" else 1
    convs = make_convs(scales, device, DTYPES[dtype])
    x = torch.randn(B, C, SIDE, SIDE, device=device, dtype=DTYPES[dtype])

    prepared = collapse_tail(convs, scales)

    def call():
        with torch.no_grad():
            return prepared(x) if contender == "prepared" else pixelshuffle_tail(x, convs, scales, impl=contender)

    work = least(x, scales, sum(p.numel() for p in convs.parameters()))
    measure(
        call,
        op="pixelshuffle_tail",
        contender=contender,
        shape=f"{scale} B={B} {C}x{SIDE}x{SIDE}",
        dtype=dtype,
        work=work,
    )


def bench_training(measure, device, dtype, contender, scale):
    skip_where_it_cannot_run(device, contender, dtype)
    scales = SCALES[scale]
    B = 32 if device.type == "cuda" else 1
    convs = make_convs(scales, device, DTYPES[dtype])
    x = torch.randn(B, C, SIDE, SIDE, device=device, dtype=DTYPES[dtype], requires_grad=True)
    leaves = [x, *convs.parameters()]
    upstream = torch.randn_like(pixelshuffle_tail(x, convs, scales, impl="eager"))

    def call():
        return torch.autograd.grad(pixelshuffle_tail(x, convs, scales, impl=contender), leaves, upstream)

    once = least(x, scales, sum(p.numel() for p in convs.parameters()))
    measure(
        call,
        op="pixelshuffle_tail",
        contender=contender,
        shape=f"{scale} B={B} {C}x{SIDE}x{SIDE}",
        dtype=dtype,
        work=Work(flops=3 * once.flops, bytes=2 * once.bytes),
        direction="forward+backward",
    )
