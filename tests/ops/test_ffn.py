"""The contract of ffn on every backend."""

import pytest
import torch
import torch.nn.functional as F

from ipt_fast.ops import ffn
from ipt_fast.ops.ffn import backend_status, ffn_reference
from tests.ops.results import relative, results
from tests.saved_tensors import saved_by, saved_bytes

BACKENDS = ("eager", "fused")
NAMES = ("x", "norm_weight", "norm_bias", "weight1", "bias1", "weight2", "bias2")


def make(*lead, D=6, hidden=24, dtype=torch.float64, norm=True, biases=True):
    """Random inputs in the order of NAMES that require gradients; None for those left out."""
    shapes = [(*lead, D), (D,), (D,), (hidden, D), (hidden,), (D, hidden), (D,)]
    absent = ({1, 2} if not norm else set()) | ({4, 6} if not biases else set())
    made = (torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes)
    return [None if i in absent else t for i, t in enumerate(made)]


def oracle(inputs, grad, activation="relu"):
    """Output and all gradients of the reference in float64."""
    wide = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    return results(lambda *t: ffn_reference(*t, activation=activation), wide, grad)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_it_is_two_linear_layers_and_an_activation(impl, activation):
    x, scale, shift, w1, b1, w2, b2 = make(2, 5)
    y = F.linear(getattr(F, activation)(F.linear(F.layer_norm(x, (6,), scale, shift, 1e-3), w1, b1)), w2, b2)
    out = ffn(x, scale, shift, w1, b1, w2, b2, eps=1e-3, activation=activation, impl=impl)
    torch.testing.assert_close(out, y)
    y = F.linear(getattr(F, activation)(F.linear(x, w1, b1)), w2, b2)
    torch.testing.assert_close(ffn(x, None, None, w1, b1, w2, b2, activation=activation, impl=impl), y)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("norm, biases", [(True, True), (False, True), (True, False)])
def test_gradcheck(impl, activation, recompute, norm, biases):
    inputs = make(2, 3, D=3, hidden=5, norm=norm, biases=biases)

    def call(*tensors):
        rest = iter(tensors)
        arguments = [None if t is None else next(rest) for t in inputs]
        return ffn(*arguments, activation=activation, recompute=recompute, impl=impl)

    assert torch.autograd.gradcheck(call, [t for t in inputs if t is not None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation, recompute", [("relu", True), ("relu", False), ("gelu", True), ("gelu", False)])
@pytest.mark.parametrize("lead, D, hidden", [((2, 256), 64, 256), ((1,), 59, 113), ((3, 59), 20, 7), ((), 8, 8)])
def test_fused_is_as_exact_as_eager(dtype, activation, recompute, lead, D, hidden):
    inputs, grad = make(*lead, D=D, hidden=hidden, dtype=dtype), torch.randn(*lead, D).to(dtype)
    options = {"activation": activation, "recompute": recompute}
    exact = oracle(inputs, grad, activation)
    eager, fused = (results(lambda *t, i=i: ffn(*t, impl=i, **options), inputs, grad) for i in BACKENDS)
    for ours, theirs, wanted in zip(fused, eager, exact, strict=True):
        assert ours.dtype == theirs.dtype == dtype and ours.shape == wanted.shape
        assert relative(ours, wanted) <= 2 * relative(theirs, wanted) + torch.finfo(dtype).eps


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", [True, False])
def test_autocast_is_for_the_gemms(x_dtype, recompute):
    inputs, grad = make(2, 9, D=64, hidden=96, dtype=torch.float32), torch.randn(2, 9, 64)
    inputs[0] = inputs[0].detach().to(x_dtype).requires_grad_()
    exact, errors = oracle(inputs, grad), []
    for impl in BACKENDS:
        with torch.autocast("cpu", torch.bfloat16):
            found = results(lambda *t, impl=impl: ffn(*t, recompute=recompute, impl=impl), inputs, grad)
        assert found[0].dtype == torch.bfloat16 and [g.dtype for g in found[1:]] == [t.dtype for t in inputs]
        errors.append([relative(a, b) for a, b in zip(found, exact, strict=True)])
    assert all(fused <= 2 * eager + torch.finfo(torch.bfloat16).eps for eager, fused in zip(*errors, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert ffn(*(t.detach().double() for t in inputs)).dtype == torch.float64


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("recompute", [True, False])
def test_fused_keeps_the_tokens_and_where_told_to_the_hidden_layer(activation, recompute):
    x, *weights = make(2, 5)
    known = {t.data_ptr() for t in weights}
    saved = saved_by(lambda: ffn(x, *weights, activation=activation, recompute=recompute, impl="fused"))
    kept = [t for t in saved if t.data_ptr() not in known]
    assert kept[0].data_ptr() == x.data_ptr()
    assert [t.shape for t in kept[1:]] == ([] if recompute else [(2, 5, 24)])


@pytest.mark.parametrize("recompute, tensors", [(True, 1), (False, 5)])
def test_a_compiled_call_keeps_the_same(recompute, tensors):
    inputs = make(2, 5, dtype=torch.float32)
    compiled = torch.compile(lambda *t: ffn(*t, recompute=recompute), fullgraph=True, backend="aot_eager")
    compiled(*inputs)
    for function in (compiled, lambda *t: ffn(*t, recompute=recompute)):
        assert saved_bytes(lambda function=function: function(*inputs), inputs[1:]) == tensors * 2 * 5 * 6 * 4


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("D, hidden", [(6, 0), (0, 3), (0, 0)])
def test_no_width_at_all(recompute, D, hidden):
    inputs, grad = make(2, 5, D=D, hidden=hidden), torch.ones(2, 5, D)
    found = results(lambda *t: ffn(*t, recompute=recompute), inputs, grad)
    for ours, exact in zip(found, results(ffn_reference, inputs, grad), strict=True):
        torch.testing.assert_close(ours, exact)


def test_frozen_parameters_get_no_gradient():
    inputs = make(2, 5)
    for t in inputs[3:5]:
        t.requires_grad_(False)
    ffn(*inputs).sum().backward()
    assert [t.grad is None for t in inputs] == [False, False, False, True, True, False, False]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"weight1": torch.zeros(24)}, ValueError, r"x must be \[\.\.\., D\].*got \[2, 5, 6\], \[24\] and \[6, 24\]"),
        ({"weight1": torch.zeros(24, 7)}, ValueError, r"weight1 must be \[24, 6\] to go with x \[2, 5, 6\]"),
        ({"weight2": torch.zeros(6, 23)}, ValueError, r"weight2 must be \[6, 24\].*got \[6, 23\]"),
        ({"bias1": torch.zeros(6)}, ValueError, r"bias1 must be \[24\].*got \[6\]"),
        ({"norm_bias": None}, ValueError, "norm_weight and norm_bias, or neither"),
        ({"activation": "silu"}, ValueError, r'activation="silu" is unknown; use one of relu, gelu'),
        ({"bias2": torch.zeros(6).half()}, TypeError, r"bias2 must have the dtype.*float16.*torch.autocast"),
        ({"x": torch.zeros(2, 5, 6).int()}, TypeError, r"must be float16, .* \(got torch.int32\)"),
        ({"impl": "cudnn"}, ValueError, 'impl="cudnn" is not a backend; choose one of fused, triton, eager'),
    ],
)
def test_errors_name_what_is_wrong(change, error, message):
    arguments = dict(zip(NAMES, (t.detach().float() for t in make(2, 5)), strict=True))
    with pytest.raises(error, match=message):
        ffn(**{**arguments, **change})


def test_status_names_every_backend():
    assert list(backend_status()) == ["fused", "triton", "eager"]
    assert list(backend_status("cuda")) == ["triton", "fused", "eager"]
    assert backend_status()["fused"] is None and backend_status()["eager"] is None
    assert "CPU and CUDA" in backend_status("xpu")["fused"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_epilogue_of_cuda_is_as_exact_as_eager(dtype):
    inputs = [t.detach().cuda().requires_grad_() for t in make(2, 59, D=64, hidden=256, dtype=dtype)]
    grad = torch.randn(2, 59, 64, device="cuda").to(dtype)
    exact = oracle(inputs, grad)
    eager, fused = (results(lambda *t, i=i: ffn(*t, impl=i), inputs, grad) for i in BACKENDS)
    for ours, theirs, wanted in zip(fused, eager, exact, strict=True):
        assert relative(ours, wanted) <= 2 * relative(theirs, wanted) + torch.finfo(dtype).eps
