"""How much faster is an EDSR-like tail as one convolution with an exact frame than as the chain of convolutions?"""

import math

import pytest
import torch
from torch import nn

from bench.case import DIRECTIONS, DTYPES, Work, outcome
from ipt_fast.ops.pixelshuffle_tail import backend_status, collapse_tail, pixelshuffle_tail

C, OUT, SIDE = 64, 3, 48
SCALES = {"x2": (2,), "x3": (3,), "x4": (2, 2)}
# "prepared": collapse_tail, composed once; the others compose in every call.
CONTENDERS = {"forward": ("eager", "collapsed", "triton", "prepared"), "forward+backward": ("eager", "collapsed")}
CASES = [(direction, dtype, name) for direction in DIRECTIONS for dtype in DTYPES for name in CONTENDERS[direction]]


def least(x, R, weights):
    """Read x once, write the image once; the multiplications of the collapsed kernel."""
    width = {2: 4, 3: 4, 4: 5}[R]  # taps that a pixel of the output depends on, along one axis
    written = x.shape[0] * SIDE * SIDE * OUT * R * R
    return Work(flops=2 * written * C * width * width, bytes=x.nbytes + (written + weights) * x.element_size())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("direction, dtype, contender", CASES)
def bench_tail(measure, device, direction, dtype, contender, scale):
    if contender != "prepared" and (reason := backend_status(device)[contender]):
        pytest.skip(f"{contender} {reason}")
    if device.type == "cuda" and dtype == "float32" and contender == "triton":
        pytest.skip("triton serves 16-bit tensors")
    scales, B = SCALES[scale], 32 if device.type == "cuda" else 1
    widths = [C * r * r for r in scales] + [OUT]
    convs = nn.ModuleList(nn.Conv2d(C, width, 3, padding=1) for width in widths).to(device, DTYPES[dtype])
    x = torch.randn(B, C, SIDE, SIDE, device=device, dtype=DTYPES[dtype], requires_grad=direction != "forward")
    prepared = collapse_tail(convs, scales)

    def function(x, *parameters):
        return prepared(x) if contender == "prepared" else pixelshuffle_tail(x, convs, scales, impl=contender)

    work, upstream = least(x, math.prod(scales), sum(p.numel() for p in convs.parameters())), None
    if direction == "forward+backward":
        work, upstream = Work(flops=3 * work.flops, bytes=2 * work.bytes), torch.randn_like(function(x))
    call, shape = lambda: outcome(function, [x, *convs.parameters()], upstream), f"{scale} B={B} {C}x{SIDE}x{SIDE}"
    measure(call, "pixelshuffle_tail", contender, shape, dtype, work, direction=direction)
