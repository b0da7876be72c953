"""Backend "triton" of layernorm_linear and ffn against float64, within the error budget of the eager references."""

import pytest
import torch

from ipt_fast.ops import ffn, layernorm_linear
from ipt_fast.ops.layernorm_linear import backend_status

# Triton's interpreter computes bfloat16 wrongly without saying so.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
SHAPES = [
    (2, 256, 48),
    (3, 5, 59),
    (1, 1, 576),
    (7, 1),
    (1300, 3),
    (2, 100),
]  # the last but one: several steps a program


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def inputs(op, shape, device, dtype):
    """[x, parameters...]; tokens with a large mean, as a residual stream has."""
    D, hidden = shape[-1], 150
    sizes = [(D,), (D,), (hidden, D), (hidden,)] + ([(D, hidden), (D,)] if op is ffn else [])
    x = torch.randn(shape) * torch.rand(shape[-1:]).add(0.5) + 3
    scaled = [torch.randn(size) / size[-1] ** (len(size) > 1) ** 0.5 for size in sizes]
    return [t.to(device, dtype) for t in (x, *scaled)]


def value_and_grads(op, tensors, weights, **options):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = op(*tensors, **options)
    out.backward(weights.to(out.dtype))
    return [out.detach(), *(t.grad for t in tensors)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", [layernorm_linear, ffn])
def test_error_is_within_twice_the_eager_one(device, op, shape, dtype):
    tensors = inputs(op, shape, device, dtype)
    weights = torch.randn(*shape[:-1], shape[-1] if op is ffn else 150, device=device)
    want = value_and_grads(op, [t.double() for t in tensors], weights, impl="eager")
    budget = value_and_grads(op, tensors, weights, impl="eager")
    got = value_and_grads(op, tensors, weights, impl="triton")
    for place, (g, b, w) in enumerate(zip(got, budget, want, strict=True)):
        assert g.dtype == dtype and g.isfinite().all(), place
        if w.norm() > 1e-9:  # one feature alone has no deviation
            assert relative(g, w) <= 2 * relative(b, w) + torch.finfo(dtype).eps, place


@pytest.mark.parametrize("op", [layernorm_linear, ffn])
def test_under_autocast_the_norm_casts_to_the_dtype_of_the_products(device, op):
    tensors = inputs(op, (2, 7, 40), device, torch.float32)
    weights = torch.randn(2, 7, 40 if op is ffn else 150, device=device)
    want = value_and_grads(op, [t.double() for t in tensors], weights, impl="eager")
    with torch.autocast(device.type, torch.float16):
        budget = value_and_grads(op, tensors, weights, impl="eager")
        got = value_and_grads(op, tensors, weights, impl="triton")
    assert got[0].dtype == torch.float16
    for g, b, w in zip(got, budget, want, strict=True):
        assert relative(g, w) <= 2 * relative(b, w) + torch.finfo(torch.float16).eps
    assert all(g.dtype == torch.float32 for g in got[1:])


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"recompute": False}, {}], ids=str)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
def test_every_form_of_the_feed_forward_network(device, options, norm):
    x, *parameters = inputs(ffn, (3, 50, 40), device, torch.float32)
    weights = torch.randn_like(x)

    def call(x, weight1, bias1, weight2, bias2, *affine, **more):
        return ffn(x, *(affine or (None, None)), weight1, bias1, weight2, bias2, **options, **more)

    tensors = [x, *parameters[2:], *(parameters[:2] if norm else ())]
    want = value_and_grads(call, [t.double() for t in tensors], weights, impl="eager")
    for g, w in zip(value_and_grads(call, tensors, weights, impl="triton"), want, strict=True):
        assert relative(g, w) < 1e-5


def test_sums_over_rows_repeat_bit_by_bit(device):
    tensors = inputs(ffn, (40, 64, 24), device, torch.float32)
    weights = torch.randn_like(tensors[0])
    first, second = (value_and_grads(ffn, tensors, weights, impl="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("op", [layernorm_linear, ffn])
def test_strided_tokens_and_no_tokens_are_taken(device, op):
    x, *parameters = inputs(op, (6, 5, 40), device, torch.float32)
    torch.testing.assert_close(
        op(x.transpose(0, 1), *parameters, impl="triton"), op(x, *parameters, impl="eager").transpose(0, 1)
    )
    empty = value_and_grads(op, [x[:0], *parameters], op(x[:0], *parameters), impl="triton")
    assert empty[1].shape == (0, 5, 40) and all((g == 0).all() for g in empty[2:])


def test_a_nan_token_stays_nan_and_alone(device):
    x, *parameters = inputs(layernorm_linear, (4, 40), device, torch.float32)
    x[1, 3] = torch.nan
    out = layernorm_linear(x, *parameters, impl="triton")
    assert out[1].isnan().all() and out[[0, 2, 3]].isfinite().all()


def test_what_it_cannot_serve_is_refused_with_the_reason(device):
    assert backend_status(device)["triton"] is None
    x, *parameters = inputs(layernorm_linear, (4, 40), device, torch.float64)
    with pytest.raises(RuntimeError, match="has no float64 kernel"):
        layernorm_linear(x, *parameters, impl="triton")
    wide = [torch.ones(size, device=device) for size in ((2, 5000), (5000,), (5000,), (3, 5000))]
    with pytest.raises(RuntimeError, match="takes 1 to 4096 features a token"):
        layernorm_linear(*wide, impl="triton")


@pytest.mark.parametrize("op", [layernorm_linear, ffn])
def test_compiled_without_a_graph_break_it_is_the_same(device, op):
    tensors = inputs(op, (2, 6, 12), device, torch.float32)
    weights = torch.randn(2, 6, 12 if op is ffn else 150, device=device)
    want = value_and_grads(op, tensors, weights, impl="triton")
    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for got, w in zip(value_and_grads(compiled, tensors, weights, impl="triton"), want, strict=True):
        torch.testing.assert_close(got, w)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_passes_that_add_are_those_of_torch(device, shape):
    from ipt_fast.kernels import norm_passes as kernels
    from ipt_fast.ops.layernorm_linear import TORCH

    D = shape[-1]
    x, branch, grad, past = (torch.randn(shape, device=device) for _ in range(4))
    weight, bias = torch.randn(2, D, device=device)
    want = TORCH.add_and_normalise(x, branch, weight, bias, 1e-3)
    got = kernels.add_and_normalise(x, branch, weight, bias, 1e-3)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.flatten(), w.flatten(), atol=1e-5, rtol=1e-5)
    assert torch.equal(got[0], x + branch)
    added, _, mean, rstd = got
    want = TORCH.normalise_backward_add(grad, added, *want[2:], weight, bias, past)
    got = kernels.normalise_backward_add(grad, added, mean, rstd, weight, past)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=2e-4, rtol=1e-4)
