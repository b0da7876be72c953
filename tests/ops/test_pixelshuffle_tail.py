"""pixelshuffle_tail equals its chain: every shape, dtype, gradient; it computes from the weights as they are."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ipt_fast.ops import collapse_tail, pixelshuffle_tail
from ipt_fast.ops.pixelshuffle_tail import (
    PixelShuffleTail,
    pixelshuffle_tail_reference,
)
from tests.ops.results import relative
from tests.ops.tails import make_convs, written_out
from tests.saved_tensors import negative_view

TAILS = [  # scales, kernel sizes
    ((2,), (3, 3)),
    ((3,), (3, 3)),
    ((2, 2), (3, 3, 3)),
    ((2, 2, 2), (3, 3, 3, 3)),
    ((4,), (3, 3)),
    ((2,), (5, 3)),
    ((2,), (1, 9)),
    ((2,), (3, 1)),
    ((3,), (1, 1)),
    ((2, 3), (3, 5, 7)),
    ((2,), ((3, 5), (5, 1))),
    ((1, 2), (3, 3, 3)),
    ((), (3,)),
]


def tensors_of(convs):
    return [t for conv in convs for t in conv if t is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scales,kernels", TAILS)
def test_equals_the_chain_at_every_size(scales, kernels, bias):
    convs = make_convs(scales, kernels, bias)
    for H, W in [(1, 1), (1, 7), (2, 3), (3, 3), (4, 5), (9, 4), (12, 11)]:
        x = torch.randn(2, 5, H, W, dtype=torch.float64)
        expected = written_out(x, convs, scales)
        got = pixelshuffle_tail(x, convs, scales, impl="collapsed")
        assert got.shape == expected.shape
        assert relative(got, expected) < 1e-12, (H, W)
        assert (got - expected).abs().max() < 1e-12 * expected.abs().max(), (H, W)


@pytest.mark.parametrize("scales", [(2,), (3,), (2, 2)])
def test_float32_and_halves_keep_the_budget(scales):
    exact = make_convs(scales, [3] * (len(scales) + 1), channels=64)
    x = torch.randn(1, 64, 12, 13, dtype=torch.float64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        convs = [tuple(t.to(dtype) for t in conv) for conv in exact]
        oracle = pixelshuffle_tail_reference(
            x.to(dtype).double(), [tuple(t.double() for t in c) for c in convs], scales
        )
        got = pixelshuffle_tail(x.to(dtype), convs, scales, impl="collapsed")
        assert got.dtype == dtype
        if dtype == torch.float32:
            assert relative(got, oracle) < 1e-5
        else:
            chain = pixelshuffle_tail_reference(x.to(dtype), convs, scales)
            assert relative(got, oracle) <= 2 * relative(chain, oracle) + torch.finfo(dtype).eps


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scales,kernels", [((2,), (3, 3)), ((3,), (3, 3)), ((2, 2), (3, 3, 3)), ((2,), ((1, 3), 3))])
def test_gradients_of_input_and_every_weight(scales, kernels, bias):
    convs = make_convs(scales, kernels, bias, channels=2, out=1, grad=True)
    leaves = tensors_of(convs)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(pixelshuffle_tail(x, convs, scales))
    got = torch.autograd.grad(pixelshuffle_tail(x, convs, scales, impl="collapsed"), [x, *leaves], upstream)
    expected = torch.autograd.grad(written_out(x, convs, scales), [x, *leaves], upstream)
    for g, e in zip(got, expected, strict=True):
        assert relative(g, e) < 1e-12


@pytest.mark.parametrize("scales", [(2,), (2, 2)])
def test_gradcheck(scales):
    convs = make_convs(scales, [3] * (len(scales) + 1), channels=1, out=1, grad=True)
    convs = [
        (w[: 2 * 4] if i == 0 else w[:, :2] if i == len(scales) else w[:8, :2], None) for i, (w, _) in enumerate(convs)
    ]
    weights = [w.detach().clone().requires_grad_() for w, _ in convs]
    x = torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    biases = [torch.randn(len(w), dtype=torch.float64, requires_grad=True) for w in weights]

    def call(x, *leaves):
        n = len(leaves) // 2
        return pixelshuffle_tail(x, list(zip(leaves[:n], leaves[n:], strict=True)), scales, impl="collapsed")

    assert torch.autograd.gradcheck(call, (x, *weights, *biases), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *weights, *biases), fast_mode=True)


def test_frozen_weights_still_give_the_gradient_of_x():
    convs = make_convs((2,), (3, 3))
    x = torch.randn(1, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(pixelshuffle_tail(x, convs, (2,), impl="collapsed").square().sum(), x)[0]
    expected = torch.autograd.grad(written_out(x, convs, (2,)).square().sum(), x)[0]
    assert relative(got, expected) < 1e-12


@pytest.mark.parametrize(
    "change",
    ["optimizer", "foreach", "fused", "load_state_dict", "in place", "through data", "bias", "new data", "half"],
)
def test_every_change_of_a_weight_counts_at_once(change):
    tail = PixelShuffleTail(4, 3, (2,), impl="collapsed")
    x = torch.randn(1, 4, 6, 6)

    def check():
        with torch.no_grad():
            chain = written_out(x.to(next(tail.parameters()).dtype), [(c.weight, c.bias) for c in tail.convs], (2,))
            return relative(tail(x.to(chain.dtype)), chain)

    assert check() < 1e-5
    with torch.no_grad():
        before = tail(x)
    if change in ("optimizer", "foreach", "fused"):
        kind = {"optimizer": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[change]
        optimizer = torch.optim.Adam(tail.parameters(), lr=0.1, **kind)
        tail(x).square().sum().backward()
        optimizer.step()
    elif change == "load_state_dict":
        tail.load_state_dict({k: torch.randn_like(v) for k, v in tail.state_dict().items()})
    elif change == "in place":
        with torch.no_grad():
            tail.convs[0].weight.mul_(2)
    elif change == "through data":
        tail.convs[0].weight.data.mul_(2)
    elif change == "bias":
        with torch.no_grad():
            tail.convs[0].bias.add_(1)
    elif change == "new data":
        tail.convs[0].weight.data = torch.randn_like(tail.convs[0].weight)
    else:
        tail.double()
    assert check() < 1e-5
    with torch.no_grad():
        assert change == "half" or not torch.allclose(before, tail(x))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_any_layout(layout):
    convs = make_convs((3,), (3, 3))
    x = torch.randn(2, 5, 7, 9, dtype=torch.float64)
    if layout == "channels_last":
        given = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        given = x.transpose(2, 3).contiguous().transpose(2, 3)
    else:
        given = torch.stack([x, x], -1)[..., 0]
    got = pixelshuffle_tail(given, convs, (3,), impl="collapsed")
    assert relative(got, written_out(x, convs, (3,))) < 1e-12


def test_autocast_gives_its_dtype():
    tail = PixelShuffleTail(8, 3, (2,), impl="collapsed")
    x = torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = tail(x)
    assert y.dtype == torch.bfloat16
    assert relative(y, tail(x)) < 2e-2


@pytest.mark.parametrize(
    "convs,scales,error,match",
    [
        ([torch.randn(4, 3, 3, 3)], (2,), ValueError, "one more than scales"),
        ([torch.randn(4, 3, 3, 3), torch.randn(3, 1, 3, 3)], (0,), ValueError, r"scales\[0\] must be at least 1"),
        ([torch.randn(4, 2, 3, 3), torch.randn(3, 1, 3, 3)], (2,), ValueError, "takes 2 channels, but 3 come in"),
        ([torch.randn(6, 3, 3, 3), torch.randn(3, 1, 3, 3)], (2,), ValueError, "no multiple of 2"),
        ([torch.randn(4, 3, 2, 2), torch.randn(3, 1, 3, 3)], (2,), ValueError, "odd"),
        ([torch.randn(4, 3, 3, 3).double(), torch.randn(3, 1, 3, 3)], (2,), TypeError, "one dtype"),
        ([nn.Conv2d(3, 4, 3), nn.Conv2d(1, 3, 3, padding=1)], (2,), ValueError, "padding"),
        ([nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Conv2d(1, 3, 3, padding=1)], (2,), ValueError, "stride"),
        ([nn.LazyConv2d(4, 3, padding=1), nn.Conv2d(1, 3, 3, padding=1)], (2,), ValueError, "has no weights yet"),
    ],
)
def test_errors_say_what_is_wrong(convs, scales, error, match):
    with pytest.raises(error, match=match):
        pixelshuffle_tail(torch.randn(1, 3, 4, 4), convs, scales)


def test_unknown_backend():
    with pytest.raises(ValueError, match="is not a backend"):
        pixelshuffle_tail(torch.randn(1, 5, 4, 4), make_convs((2,), (3, 3), dtype=torch.float32), (2,), impl="cuda")


def test_meta_tensors_have_the_shape():
    tail = PixelShuffleTail(4, 3, (2,), impl="collapsed").to("meta")
    assert tail(torch.empty(2, 4, 5, 6, device="meta")).shape == (2, 3, 10, 12)


def test_exported_graphs_hold_the_chain():
    program = torch.export.export(PixelShuffleTail(4, 3, (2,)).eval(), (torch.randn(1, 4, 6, 6),))
    assert "ipt_fast" not in str(program.graph)
    assert str(program.graph).count("pixel_shuffle") >= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scales", [(2,), (3,), (2, 2)])
def test_a_collapsed_tail_gives_the_bits_of_the_op(scales, dtype):
    convs = PixelShuffleTail(32, 3, scales).to(dtype).convs
    tail = collapse_tail(convs, scales)
    with torch.no_grad():
        for H, W in ((12, 11), (1, 2)):
            x = torch.randn(2, 32, H, W).to(dtype)
            got = tail(x)
            assert got.dtype == dtype and torch.equal(got, pixelshuffle_tail(x, convs, scales, impl="collapsed"))


def test_a_collapsed_tail_is_frozen_and_can_be_copied_saved_compiled_exported_and_traced():
    convs = make_convs((2,), (3, 3), channels=64, dtype=torch.float32, grad=True)
    tail = collapse_tail(convs, (2,))
    x = torch.randn(1, 64, 9, 8)
    expected = tail(x)
    assert not list(tail.parameters()) and not expected.requires_grad
    stored = io.BytesIO()
    torch.save(tail, stored)
    stored.seek(0)
    for other in (
        copy.deepcopy(tail),
        torch.load(stored, weights_only=False),
        torch.compile(tail, fullgraph=True, backend="aot_eager"),
        torch.export.export(tail, (x,)).module(),
        torch.jit.trace(tail, (x,)),
    ):
        torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        convs[0][0].mul_(2)
    assert torch.equal(tail(x), expected)
    x.requires_grad_()
    with torch.no_grad():
        convs[0][0].div_(2)
    frozen, chain = (torch.autograd.grad(y.square().sum(), x)[0] for y in (tail(x), written_out(x, convs, (2,))))
    assert relative(frozen, chain) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert tail(x).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"x is torch.float64, a weight torch.float32; use one dtype"):
        tail(x.double())
    with pytest.raises(TypeError, match="collapse_tail: dtype must be float16"):
        collapse_tail(convs, (2,), torch.int8)


def test_empty_batches_odd_weights_and_fake_tensors():
    convs = make_convs((2,), (3, 3), channels=8, dtype=torch.float32)
    x = torch.randn(2, 8, 9, 7)
    expected = written_out(x, convs, (2,))
    for impl in (None, "eager", "collapsed"):
        leaves = [x[:0].requires_grad_(), convs[0][0].clone().requires_grad_()]
        y = pixelshuffle_tail(leaves[0], [(leaves[1], None), convs[1]], (2,), impl=impl)
        nothing, zero = torch.autograd.grad(y.sum(), leaves)
        assert y.shape == (0, 3, 18, 14) and nothing.shape == (0, 8, 9, 7) and not zero.any()
        last = [(w.to(memory_format=torch.channels_last), b) for w, b in convs]
        assert relative(pixelshuffle_tail(x, last, (2,), impl=impl), expected) < 1e-5
        negative = [(negative_view(-w), negative_view(-b)) for w, b in convs]
        assert relative(pixelshuffle_tail(x, negative, (2,), impl=impl), expected) < 1e-5
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert pixelshuffle_tail(mode.from_tensor(x), convs, (2,), impl=impl).shape == (2, 3, 18, 14)
        assert relative(pixelshuffle_tail(x, convs, (2,), impl=impl), expected) < 1e-5


def within(context, function, *args):
    with context:
        return function(*(t.clone() for t in args))


def squares(function):
    return lambda *args: function(*args).square().sum()


MACHINERY = {
    "default device": lambda f, x, w: within(torch.device("meta"), f, x, w),
    "inference mode": lambda f, x, w: within(torch.inference_mode(), f, x, w),
    "vmap": lambda f, x, w: torch.vmap(f, (None, 0))(x, torch.stack([w, 2 * w])),
    "grad": lambda f, x, w: torch.func.grad(squares(f), (0, 1))(x, w),
    "jvp": lambda f, x, w: torch.func.jvp(f, (x, w), (x.sin(), w.sin())),
    "jvp of grad": lambda f, x, w: torch.func.jvp(torch.func.grad(squares(f), 1), (x, w), (x.sin(), w.sin())),
}


@pytest.mark.parametrize("way", MACHINERY)
@pytest.mark.parametrize("scales", [(2,), (2, 2)])
def test_the_machinery_of_torch_gives_what_it_gives_for_the_chain(way, scales):
    (w, b), *rest = make_convs(scales, [3] * (len(scales) + 1))
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    wanted = MACHINERY[way](lambda x, w: written_out(x, [(w, b), *rest], scales), x, w)
    got = MACHINERY[way](lambda x, w: pixelshuffle_tail(x, [(w, b), *rest], scales, impl="collapsed"), x, w)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": None}, r"x must be a tensor \[B, C, H, W\] \(got NoneType\)"),
        ({"x": torch.zeros(1, 5, 4, 4, dtype=torch.int64)}, r"x must be float16, .* \(got torch.int64\)"),
        ({"scales": 2}, r"scales must be a sequence \(got int\)"),
        ({"convs": None}, r"convs must be a sequence \(got NoneType\)"),
        ({"convs": [None, torch.zeros(3, 4, 3, 3)]}, r"convs\[0\] must be an nn.Conv2d, .* \(got NoneType\)"),
        ({"convs": [(torch.zeros(16, 5, 3, 3), 1.0), torch.zeros(3, 4, 3, 3)]}, r"bias of convs\[0\] must be a tensor"),
        ({"convs": {1: 2}}, r"convs must be a sequence \(got dict\)"),
        ({"scales": (2.0,)}, r"scales\[0\] must be a whole number \(got 2.0\)"),
    ],
)
def test_wrong_types_are_named(change, message):
    call = {"x": torch.zeros(1, 5, 4, 4), "convs": make_convs((2,), (3, 3), dtype=torch.float32), "scales": (2,)}
    with pytest.raises(TypeError, match=f"pixelshuffle_tail: .*{message}"):
        pixelshuffle_tail(**{**call, **change})


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"n_feats": None}, TypeError, r"n_feats must be a whole number \(got NoneType\)"),
        ({"out_channels": -1}, ValueError, r"out_channels must be at least 1 \(got -1\)"),
        ({"kernel_size": (3, 3)}, TypeError, r"kernel_size must be a whole number \(got tuple\)"),
        ({"kernel_size": 2}, ValueError, r"convs\[0\] has an even kernel"),
        ({"scales": 2}, TypeError, r"scales must be a sequence \(got int\)"),
    ],
)
def test_a_tail_that_cannot_be_built_says_why(change, error, message):
    with pytest.raises(error, match=f"(?i)PixelShuffle_?Tail: {message}"):
        PixelShuffleTail(**change)
