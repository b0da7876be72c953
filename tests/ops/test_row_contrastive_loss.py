"""The contract of row_contrastive_loss on every backend that runs here."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from ipt_fast.ops import row_contrastive_loss
from ipt_fast.ops._registry import assume
from ipt_fast.ops._row_contrastive_loss_gemm import operand_dtype
from ipt_fast.ops.row_contrastive_loss import backend_status, row_contrastive_loss_reference
from tests.ops.rows import make_rows, relative, value_and_grads
from tests.saved_tensors import saved_bytes

GEMM = "ipt_fast.ops._row_contrastive_loss_gemm"
MODES = ("softmax", "sigmoid")
EPS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-4}


@pytest.fixture(params=["eager", "gemm"])
def impl(request):
    return request.param


def softmax_in_loops(x, y, scale):
    logits = [[scale * (a @ b).item() for b in y] for a in x]
    values = []
    for i, row in enumerate(logits):
        column = [other[i] for other in logits]
        values.append(sum(math.log(sum(map(math.exp, line))) - row[i] for line in (row, column)) / 2)
    return torch.tensor(values, dtype=x.dtype)


def sigmoid_in_loops(x, y, scale, bias):
    values = []
    for i, a in enumerate(x):
        logits = [(1 if i == j else -1) * (scale * (a @ b).item() + bias) for j, b in enumerate(y)]
        values.append(sum(math.log(1 + math.exp(-logit)) for logit in logits))
    return torch.tensor(values, dtype=x.dtype)


@pytest.mark.parametrize("B, D", [(1, 3), (2, 1), (7, 5)])
def test_it_is_the_written_sum(impl, B, D):
    x, y = torch.randn(2, B, D, dtype=torch.float64)
    got = row_contrastive_loss(x, y, 1.7, reduction="none", impl=impl)
    torch.testing.assert_close(got, softmax_in_loops(x, y, 1.7), rtol=1e-12, atol=1e-12)
    got = row_contrastive_loss(x, y, 1.7, -0.4, mode="sigmoid", reduction="none", impl=impl)
    torch.testing.assert_close(got, sigmoid_in_loops(x, y, 1.7, -0.4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("B, D", [(1, 3), (5, 8)])
def test_the_means_are_the_losses_of_clip_and_siglip(impl, B, D):
    x, y, scale, bias = make_rows(B, D, "sigmoid")
    logits, target = scale * x @ y.T, torch.arange(B)
    clip = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(row_contrastive_loss(x, y, scale, impl=impl), clip, rtol=1e-12, atol=1e-12)
    z = 2 * torch.eye(B, dtype=x.dtype) - 1
    siglip = -F.logsigmoid(z * (logits + bias)).sum() / B
    got = row_contrastive_loss(x, y, scale, bias, mode="sigmoid", impl=impl)
    torch.testing.assert_close(got, siglip, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_reductions_agree(impl, mode):
    inputs = make_rows(5, 4, mode)
    values = row_contrastive_loss(*inputs, mode=mode, reduction="none", impl=impl)
    assert values.shape == (5,)
    torch.testing.assert_close(row_contrastive_loss(*inputs, mode=mode, impl=impl), values.mean())
    torch.testing.assert_close(row_contrastive_loss(*inputs, mode=mode, reduction="sum", impl=impl), values.sum())


@pytest.mark.parametrize("number", [lambda v: v, lambda v: torch.tensor(v), lambda v: torch.tensor([[v]]).double()])
def test_scale_and_bias_are_numbers_or_tensors_of_one_element(impl, number):
    x, y, scale, bias = make_rows(5, 4, "sigmoid", torch.float32)
    want = row_contrastive_loss(x, y, scale, bias, mode="sigmoid", impl=impl)
    given = [number(20.0), number(-3.0)]
    assert torch.equal(row_contrastive_loss(x, y, *given, mode="sigmoid", impl=impl), want)
    if isinstance(given[0], torch.Tensor):
        _, _, *grads = value_and_grads((x, y, *given), torch.ones(()), mode="sigmoid", impl=impl)[1:]
        assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in given]


def test_rows_of_two_dtypes_are_taken_in_the_wider_one(impl):
    x, y = torch.randn(4, 6), torch.randn(4, 6).bfloat16()
    loss, dx, dy = value_and_grads((x, y), torch.ones(()), lambda x, y: row_contrastive_loss(x, y, 2.0, impl=impl))
    torch.testing.assert_close(loss, row_contrastive_loss(x, y.float(), 2.0, impl=impl), rtol=0, atol=0)
    assert (loss.dtype, dx.dtype, dy.dtype) == (torch.float32, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("mode", MODES)
def test_x_and_y_may_be_one_tensor(impl, mode):
    x, _, *numbers = make_rows(5, 4, mode)
    loss, dx = value_and_grads(
        [x], torch.ones(()), lambda x: row_contrastive_loss(x, x, *numbers, mode=mode, impl=impl)
    )
    want, *grads = value_and_grads(
        [x, x.clone()], torch.ones(()), lambda x, y: row_contrastive_loss(x, y, *numbers, mode=mode, impl=impl)
    )
    torch.testing.assert_close([loss, dx], [want, sum(grads)])


# Less than a tile, one row, one feature; several tiles of which none is full.
@pytest.mark.parametrize("dtype", list(EPS), ids=str)
@pytest.mark.parametrize("B, D", [(1, 7), (2, 1), (59, 33), (257, 64), (2111, 5)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_gemm_is_as_exact_as_eager(mode, B, D, dtype):
    inputs, weights = make_rows(B, D, mode, dtype), torch.randn(B, dtype=torch.float64)
    options = {"mode": mode, "reduction": "none"}
    want = value_and_grads([t.double() for t in inputs], weights, impl="eager", **options)
    budget = value_and_grads(inputs, weights, impl="eager", **options)
    got = value_and_grads(inputs, weights, impl="gemm", **options)
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(g.dtype == dtype for g in got[1:])
    for g, b, w in zip(got, budget, want, strict=True):
        assert relative(g, w) <= 2 * relative(b, w) + EPS[dtype]


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 5), (4, 2), (13, 1), (2, 13), (6, 6)])
@pytest.mark.parametrize("mode", MODES)
def test_tiles_of_any_size_give_the_same_and_always_the_same_bits(monkeypatch, mode, rows, columns):
    inputs, weights, options = make_rows(13, 9, mode), torch.randn(13), {"mode": mode, "reduction": "none"}
    want = value_and_grads(inputs, weights, impl="eager", **options)
    monkeypatch.setattr(f"{GEMM}._CPU_TILE", (rows, columns))
    got = value_and_grads(inputs, weights, impl="gemm", **options)
    for g, w, again in zip(got, want, value_and_grads(inputs, weights, impl="gemm", **options), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-13)
        assert torch.equal(g, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_16_bit_gemms_with_float32_sums_as_on_a_gpu(monkeypatch, mode, dtype):
    def product(a, b, out=None):
        assert a.dtype == b.dtype == dtype
        exact = a.float() @ b.float()
        return exact if out is None else out.copy_(exact)

    inputs, weights = make_rows(67, 40, mode, dtype), torch.randn(67)
    options = {"mode": mode, "reduction": "none"}
    want = value_and_grads([t.double() for t in inputs], weights, impl="eager", **options)
    rough = value_and_grads(inputs, weights, lambda *t: row_contrastive_loss_reference(*t, mode=mode))
    monkeypatch.setattr(f"{GEMM}._CPU_TILE", (32, 48))
    monkeypatch.setattr(f"{GEMM}.operand_dtype", lambda x: x.dtype)
    for module in (GEMM, "ipt_fast.ops._contrastive_blocks"):
        monkeypatch.setattr(f"{module}.product", product)
    got = value_and_grads(inputs, weights, impl="gemm", **options)
    for g, b, w in zip(got, rough, want, strict=True):
        assert relative(g, w) <= 2 * relative(b, w) + EPS[dtype]
    # Elements of G of 4e-6, which float16 would hold to 6e-8 alone: weights are taken relative to the largest.
    small = value_and_grads(inputs, weights / 4096, impl="gemm", **options)
    for s, g in zip(small[1:], got[1:], strict=True):
        torch.testing.assert_close(4096 * s.float(), g.float(), rtol=1e-3, atol=4096 * 6e-8)


@pytest.mark.parametrize(
    "capability, dtype, wanted",
    [((7, 0), torch.bfloat16, torch.float32), ((8, 0), torch.bfloat16, torch.bfloat16),
     ((7, 0), torch.float16, torch.float16), ((9, 0), torch.float32, torch.float32)],
)  # fmt: skip
def test_gemms_on_a_gpu_have_16_bits_where_it_has_such(capability, dtype, wanted):
    with assume(capability), FakeTensorMode():
        assert operand_dtype(torch.empty(3, 4, dtype=dtype, device="cuda")) == wanted


@pytest.mark.parametrize("mode", MODES)
def test_gradients_agree_with_finite_differences(impl, mode):
    inputs = [t.requires_grad_() for t in make_rows(4, 3, mode, scale=3.0)]
    assert torch.autograd.gradcheck(
        lambda *t: row_contrastive_loss(*t, mode=mode, reduction="none", impl=impl), inputs, fast_mode=False
    )


def test_what_is_left_of_the_softmax_when_every_positive_wins(impl):
    # Losses of exp(-7) at logits of 100, where a log-sum-exp in float32 would be rounded to 4e-6.
    for scale in (100.3, 101.9, 103.6, 104.2):
        inputs = torch.eye(2), torch.tensor([[1.0, 0.93], [0.93, 1.0]]), torch.tensor(scale)
        want = value_and_grads([t.double() for t in inputs], torch.ones(()), impl="eager")
        got = value_and_grads(inputs, torch.ones(()), impl=impl)
        assert 5e-4 < want[0] < 1e-3 and relative(got[0], want[0]) < 3e-4
        assert all(relative(g, w) < 2e-3 for g, w in zip(got[1:], want[1:], strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_logits_far_beyond_the_range_of_exp(impl, mode):
    inputs, weights = make_rows(9, 6, mode, torch.float32, scale=1e4), torch.randn(9)
    options = {"mode": mode, "reduction": "none"}
    want = value_and_grads([t.double() for t in inputs], weights, impl="eager", **options)
    for g, w in zip(value_and_grads(inputs, weights, impl=impl, **options), want, strict=True):
        assert g.isfinite().all() and relative(g, w) < 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])  # the last: logits overflow
def test_a_single_nan_inf_or_overflow_shows_in_the_loss(impl, mode, value, which):
    inputs = [t.detach() for t in make_rows(5, 4, mode, torch.float32)]
    inputs[which].view(-1)[-1] = value
    inputs[0][-1, -1] *= 100
    loss, *grads = value_and_grads(inputs, torch.ones(()), mode=mode, impl=impl)
    assert not loss.isfinite()
    assert not all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_nothing_and_of_nan(impl, mode):
    inputs, options = make_rows(5, 4, mode), {"mode": mode, "reduction": "none", "impl": impl}
    assert not any(g.any() for g in value_and_grads(inputs, torch.zeros(5), **options)[1:])
    weights = torch.ones(5).index_fill(0, torch.tensor(2), torch.nan)
    assert all(g.isnan().any() for g in value_and_grads(inputs, weights, **options)[1:])


@pytest.mark.parametrize("mode", MODES)
def test_autocast_leaves_the_loss_as_it_is(impl, mode):
    inputs = make_rows(6, 8, mode, torch.float32)
    want = value_and_grads(inputs, torch.ones(()), mode=mode, impl=impl)
    inputs = [t.requires_grad_() for t in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        loss = row_contrastive_loss(*inputs, mode=mode, impl=impl)
    got = [loss, *torch.autograd.grad(loss, inputs)]
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_registration_of_the_gemm_ops(mode, dtype):
    ops, inputs = torch.ops.ipt_fast, make_rows(5, 8, "sigmoid", dtype)
    inputs[3] = inputs[3].reshape(())
    kept, values = ops.row_contrastive_loss(*inputs, mode, "local", "gemm")
    assert values.shape == (5,) and kept.shape == (4 if mode == "softmax" else 0, 5)
    torch.library.opcheck(ops.row_contrastive_loss.default, (*inputs, mode, "local", "gemm"))
    arguments = (*inputs, kept, torch.rand(5), mode, "local", "gemm")
    torch.library.opcheck(ops.row_contrastive_loss_backward.default, arguments)


@pytest.mark.parametrize("mode, numbers", [("softmax", 4), ("sigmoid", 0)])
def test_rows_and_four_numbers_a_pair_wait_for_the_backward(mode, numbers):
    inputs = [t.requires_grad_() for t in make_rows(300, 16, mode, torch.float32)]
    saved = saved_bytes(lambda: row_contrastive_loss(*inputs, mode=mode, impl="gemm"), inputs)
    assert saved <= 300 * numbers * 4 + 16


def test_status_and_automatic_choice(monkeypatch):
    assert list(backend_status("cuda")) == ["triton", "gemm", "eager"] and next(iter(backend_status("cpu"))) == "gemm"
    assert backend_status("cuda")["gemm"] is None  # also where no kernel of Triton's can run
    inputs = make_rows(4, 3, "softmax")
    monkeypatch.setenv("IPT_FAST_IMPL", "row_contrastive_loss=eager")
    x = inputs[0].requires_grad_()
    assert row_contrastive_loss(*inputs).grad_fn.name() == "MeanBackward0"
    (grad,) = torch.autograd.grad(row_contrastive_loss(*inputs), x, create_graph=True)
    assert grad.requires_grad
    torch.autograd.grad(grad.sum(), x)  # eager alone can


X = torch.ones(4, 3)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": [[1.0]]}, TypeError, r"x must be a tensor \[B, D\] \(got list\)"),
        ({"y": X.int()}, TypeError, "y must be float16, .* or float64 .got torch.int32"),
        ({"y": X[:2]}, ValueError, r"x and y must both be \[B, D\] \(got \[4, 3\] and \[2, 3\]\)"),
        ({"x": X[0], "y": X[0]}, ValueError, r"both be \[B, D\] \(got \[3\] and \[3\]\)"),
        ({"x": X[:0], "y": X[:0]}, ValueError, r"at least one row of one feature \(got \[0, 3\]\)"),
        ({"x": X[:, :0], "y": X[:, :0]}, ValueError, r"at least one row of one feature \(got \[4, 0\]\)"),
        ({"y": X.to("meta")}, TypeError, "y must have the dtype and device of x"),
        ({"scale": None}, TypeError, r"scale must be a number or a tensor of one element \(got NoneType\)"),
        ({"scale": torch.ones(2)}, ValueError, r"scale must have one element \(got shape \[2\]\)"),
        ({"scale": torch.ones((), dtype=torch.int64)}, TypeError, "scale must be float16"),
        ({"scale": math.nan}, ValueError, "scale must be finite"),
        ({"scale": True}, TypeError, "scale must be a number"),
        ({"bias": 0.0}, ValueError, 'the softmax does not change with a bias; leave it out or use mode="sigmoid"'),
        ({"bias": "a", "mode": "sigmoid"}, TypeError, "bias must be a number"),
        ({"mode": "siglip"}, ValueError, 'mode="siglip" is unknown; use one of softmax, sigmoid'),
        ({"reduction": "max"}, ValueError, 'reduction="max" is unknown'),
        ({"scope": "world"}, ValueError, 'scope="world" is unknown'),
        ({"impl": "cudnn"}, ValueError, "not a backend; choose one of gemm, triton, eager"),
    ],
)
def test_wrong_calls_say_what_is_wrong(change, error, message):
    with pytest.raises(error, match=message):
        row_contrastive_loss(**{"x": X, "y": X, "scale": 1.0, **change})
