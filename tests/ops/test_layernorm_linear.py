"""The contract of layernorm_linear on every backend."""

import pytest
import torch
import torch.nn.functional as F

from ipt_fast.ops import layernorm_linear
from ipt_fast.ops.layernorm_linear import backend_status, layernorm_linear_reference
from tests.ops.results import relative, results
from tests.saved_tensors import saved_by

BACKENDS = ("eager", "fused")


def make(*lead, D=6, D_out=10, dtype=torch.float64, bias=True):
    """Random x, norm_weight, norm_bias, weight and bias that require gradients."""
    shapes = [(*lead, D), (D,), (D,), (D_out, D)] + [(D_out,)] * bias
    return [torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def oracle(inputs, grad):
    """Output and all gradients of the reference in float64."""
    return results(layernorm_linear_reference, [x.detach().double().requires_grad_() for x in inputs], grad)


@pytest.mark.parametrize("impl", BACKENDS)
def test_it_is_the_linear_layer_of_the_norm(impl):
    x, scale, shift, weight, bias = make(2, 5)
    wanted = F.linear(F.layer_norm(x, (6,), scale, shift, 1e-3), weight, bias)
    torch.testing.assert_close(layernorm_linear(x, scale, shift, weight, bias, eps=1e-3, impl=impl), wanted)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(impl, bias):
    assert torch.autograd.gradcheck(lambda *t: layernorm_linear(*t, impl=impl), make(2, 3, D_out=4, bias=bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lead, D, D_out", [((2, 256), 64, 192), ((1,), 59, 113), ((3, 59), 20, 7), ((), 8, 8)])
def test_fused_is_as_exact_as_eager(dtype, lead, D, D_out):
    inputs, grad = make(*lead, D=D, D_out=D_out, dtype=dtype), torch.randn(*lead, D_out).to(dtype)
    exact = oracle(inputs, grad)
    eager, fused = (results(lambda *t, i=i: layernorm_linear(*t, impl=i), inputs, grad) for i in BACKENDS)
    for ours, theirs, wanted in zip(fused, eager, exact, strict=True):
        assert ours.dtype == theirs.dtype == dtype and ours.shape == wanted.shape
        assert relative(ours, wanted) <= 2 * relative(theirs, wanted) + torch.finfo(dtype).eps


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_for_the_gemm(x_dtype):
    inputs, grad = make(2, 9, D=64, D_out=96, dtype=torch.float32), torch.randn(2, 9, 96)
    inputs[0] = inputs[0].detach().to(x_dtype).requires_grad_()
    exact, errors = oracle(inputs, grad), []
    for impl in BACKENDS:
        with torch.autocast("cpu", torch.bfloat16):
            found = results(lambda *t, impl=impl: layernorm_linear(*t, impl=impl), inputs, grad)
        assert found[0].dtype == torch.bfloat16 and [g.dtype for g in found[1:]] == [t.dtype for t in inputs]
        errors.append([relative(a, b) for a, b in zip(found, exact, strict=True)])
    assert all(fused <= 2 * eager + torch.finfo(torch.bfloat16).eps for eager, fused in zip(*errors, strict=True))
    wide = [t.detach().double() for t in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        assert layernorm_linear(*wide).dtype == torch.float64


@pytest.mark.parametrize("impl", BACKENDS)
def test_the_norm_of_16_bit_tokens_may_have_wider_parameters(impl):
    x, scale, shift, weight, bias = (t.detach() for t in make(2, 5, dtype=torch.float32))
    x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    out = layernorm_linear(x, scale, shift, weight, bias, impl=impl)
    assert torch.equal(out, layernorm_linear(x, scale.bfloat16(), shift.bfloat16(), weight, bias, impl=impl))


def test_fused_keeps_the_tokens_alone():
    x, *weights = make(2, 5)
    known = {t.data_ptr() for t in weights}
    saved = saved_by(lambda: layernorm_linear(x, *weights, impl="fused"))
    assert [t.data_ptr() for t in saved if t.data_ptr() not in known] == [x.data_ptr()]
    assert len(saved_by(lambda: layernorm_linear(x, *weights, impl="eager"))) > len(saved)


@pytest.mark.parametrize("impl", BACKENDS)
@pytest.mark.parametrize("D, D_out", [(6, 0), (0, 3), (0, 0)])
def test_no_width_at_all(impl, D, D_out):
    inputs = make(2, 5, D=D, D_out=D_out)
    found, wanted = (
        results(f, inputs, torch.ones(2, 5, D_out)) for f in (layernorm_linear, layernorm_linear_reference)
    )
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, exact)


def test_a_part_of_a_weight_and_frozen_weights():
    x, scale, shift, weight = make(2, 5, bias=False)
    out = layernorm_linear(x, scale.detach(), shift.detach(), weight[:4])
    dx, dweight = torch.autograd.grad(out.sum(), (x, weight))
    assert dx.abs().min() > 0 and dweight[:4].abs().min() > 0 and not dweight[4:].any()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"weight": torch.zeros(10)}, ValueError, r"weight \[D_out, D\] \(got \[2, 5, 6\] and \[10\]\)"),
        ({"weight": torch.zeros(10, 7)}, ValueError, r"weight must be \[10, 6\] to go with x \[2, 5, 6\]"),
        ({"bias": torch.zeros(6)}, ValueError, r"bias must be \[10\].*got \[6\]"),
        ({"norm_weight": torch.zeros(10)}, ValueError, r"norm_weight must be \[6\].*got \[10\]"),
        ({"weight": torch.zeros(10, 6).half()}, TypeError, r"weight must have the dtype.*float16.*torch.autocast"),
        ({"bias": torch.zeros(10, device="meta")}, TypeError, "on meta"),
        ({"x": torch.zeros(2, 5, 6).int()}, TypeError, r"x must be float16, .* \(got torch.int32\)"),
        ({"impl": "cudnn"}, ValueError, 'impl="cudnn" is not a backend; choose one of fused, triton, eager'),
    ],
)
def test_errors_name_what_is_wrong(change, error, message):
    shapes = {"x": (2, 5, 6), "norm_weight": (6,), "norm_bias": (6,), "weight": (10, 6), "bias": (10,)}
    with pytest.raises(error, match=message):
        layernorm_linear(**{**{name: torch.zeros(shape) for name, shape in shapes.items()}, **change})


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setenv("IPT_FAST_IMPL", "layernorm_linear=eager")
    x, *weights = make(2, 5)
    (grad,) = torch.autograd.grad(layernorm_linear(x, *weights).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(grad.sum(), weights[2])[0].isfinite().all()


def test_status_names_every_backend():
    assert list(backend_status()) == ["fused", "triton", "eager"]
    assert list(backend_status("cuda")) == ["triton", "fused", "eager"]
    assert backend_status()["fused"] is None and backend_status()["eager"] is None
    assert backend_status("xpu")["fused"] == "serves CPU and CUDA tensors (found xpu)"
    assert backend_status("xpu")["eager"] is None
