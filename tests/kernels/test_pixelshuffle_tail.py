"""The Triton kernel of pixelshuffle_tail equals the chain: frame, corners, every class, any sizes and layouts."""

import pytest
import torch
from torch import nn

from ipt_fast.ops import pixelshuffle_tail
from ipt_fast.ops.pixelshuffle_tail import pixelshuffle_tail_reference
from tests.ops.results import relative
from tests.ops.tails import make_convs

TAILS = [  # scales, kernel sizes, channels in, channels out
    ((2,), (3, 3), 16, 3),
    ((3,), (3, 3), 16, 3),
    ((2, 2), (3, 3, 3), 16, 3),
    ((2,), (5, 3), 5, 3),
    ((2,), (1, 5), 40, 1),
    ((2,), ((3, 5), (5, 1)), 7, 2),
    ((2,), (3, 1), 16, 3),
    ((4,), (3, 3), 16, 5),  # more values a cell than a tile has columns
]


def exact(x, convs, scales):
    wide = [(w.double(), None if b is None else b.double()) for w, b in convs]
    return pixelshuffle_tail_reference(x.double(), wide, scales)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scales,kernels,channels,out", TAILS)
def test_equals_the_chain(device, scales, kernels, channels, out, bias):
    convs = make_convs(scales, kernels, bias, channels, out, torch.float32, device=device)
    for B, H, W in [(2, 7, 9), (1, 13, 8), (3, 5, 31)]:
        x = torch.randn(B, channels, H, W, device=device)
        got = pixelshuffle_tail(x, convs, scales, impl="triton")
        expected = exact(x, convs, scales)
        assert got.shape == expected.shape
        assert relative(got, expected) < 1e-5, (B, H, W)
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max(), (B, H, W)


@pytest.mark.parametrize("H,W", [(1, 1), (1, 8), (2, 2), (3, 3), (3, 4)])
def test_smallest_images(device, H, W):
    convs = make_convs((2,), (3, 3), True, 16, 3, torch.float32, device=device)
    x = torch.randn(2, 16, H, W, device=device)
    assert relative(pixelshuffle_tail(x, convs, (2,), impl="triton"), exact(x, convs, (2,))) < 1e-5


@pytest.mark.parametrize("scales", [(2,), (3,), (2, 2)])
def test_half_precision_keeps_the_budget(device, scales):
    dtypes = [torch.float16] + [torch.bfloat16] * (device.type == "cuda")  # bf16 is wrong in the interpreter
    for dtype in dtypes:
        convs = make_convs(scales, [3] * (len(scales) + 1), True, 64, 3, dtype, device=device)
        x = torch.randn(1, 64, 10, 12, device=device).to(dtype)
        got = pixelshuffle_tail(x, convs, scales, impl="triton")
        chain = pixelshuffle_tail_reference(x, convs, scales)
        oracle = exact(x, convs, scales)
        assert got.dtype == dtype
        assert relative(got, oracle) <= 2 * relative(chain, oracle) + torch.finfo(dtype).eps


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "every other channel"])
def test_any_layout(device, layout):
    convs = make_convs((2,), (3, 3), True, 16, 3, torch.float32, device=device)
    x = torch.randn(2, 16, 6, 8, device=device)
    expected = exact(x, convs, (2,))
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.cat([x, x.flip(3)], 3).contiguous(memory_format=torch.channels_last)[..., :8]
    elif layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    else:
        x = torch.stack([x, x], 2).flatten(1, 2)[:, ::2]
    assert relative(pixelshuffle_tail(x, convs, (2,), impl="triton"), expected) < 1e-5


def test_kernels_follow_the_weights(device):
    convs = make_convs((2,), (3, 3), True, 16, 3, torch.float32, device=device)
    x = torch.randn(1, 16, 6, 6, device=device)
    for impl in ("triton", "collapsed", "triton"):
        assert relative(pixelshuffle_tail(x, convs, (2,), impl=impl), exact(x, convs, (2,))) < 1e-5
        convs[0][0].mul_(2)
    assert relative(pixelshuffle_tail(x, convs, (2,), impl="triton"), exact(x, convs, (2,))) < 1e-5


def test_what_it_cannot_serve(device):
    convs = [nn.Conv2d(4, 16, 3, padding=1).to(device), nn.Conv2d(4, 3, 3, padding=1).to(device)]
    with pytest.raises(RuntimeError, match="no backward pass"):
        pixelshuffle_tail(torch.randn(1, 4, 6, 6, device=device), convs, (2,), impl="triton")
    wide, x = [c.double() for c in convs], torch.randn(1, 4, 6, 6, device=device).double()
    with torch.no_grad(), pytest.raises(RuntimeError, match="float64"):
        pixelshuffle_tail(x, wide, (2,), impl="triton")
