"""A product with normalised tokens equals the modules that it stands for, and keeps the tokens alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ipt_fast.model.norm import LayerNorm
from ipt_fast.model.normed_linear import normed_linear
from tests.saved_tensors import saved_by


def make(dtype=torch.float64, D=6):
    norm, weight = LayerNorm(D).to(dtype), nn.Parameter(torch.randn(3 * D, D, dtype=dtype))
    for p in norm.parameters():
        nn.init.normal_(p)
    return torch.randn(2, 5, D, dtype=dtype, requires_grad=True), norm, weight


@pytest.mark.parametrize("rows", [18, 6])  # all of the projection, and a view of it
def test_value_and_every_gradient(rows):
    x, norm, weight = make()
    leaves = [x, *norm.parameters(), weight]
    factors = torch.randn(2, 5, rows, dtype=torch.float64)
    results = []
    for out in (normed_linear(x, norm, weight[:rows]), F.linear(norm(x), weight[:rows])):
        results.append([out, *torch.autograd.grad((out * factors).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_errs_no_more_than_the_modules(x_dtype):
    x, norm, weight = make(torch.float32, D=64)
    exact = F.linear(norm(x), weight)
    exact_grads = torch.autograd.grad(exact.square().sum(), [x, *norm.parameters(), weight])
    low = x.detach().to(x_dtype).requires_grad_()
    leaves, errors = [low, *norm.parameters(), weight], []
    for function in (normed_linear, lambda x, norm, weight: F.linear(norm(x), weight)):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(low, norm, weight)
        grads = torch.autograd.grad(out.float().square().sum(), leaves)
        assert out.dtype == torch.bfloat16 and [g.dtype for g in grads] == [p.dtype for p in leaves]
        pairs = zip([out, *grads], [exact, *exact_grads], strict=True)
        errors.append([((a.float() - b).norm() / b.norm()).item() for a, b in pairs])
    for ours, modules in zip(*errors, strict=True):
        assert ours <= 2 * modules + torch.finfo(torch.bfloat16).eps


def test_it_keeps_the_tokens_alone():
    x, norm, weight = make()
    weights = {p.data_ptr() for p in (*norm.parameters(), weight)}
    kept = saved_by(lambda: normed_linear(x, norm, weight))
    assert [t.data_ptr() for t in kept if t.data_ptr() not in weights] == [x.data_ptr()]


def test_frozen_parameters_get_no_gradient():
    x, norm, weight = make()
    norm.requires_grad_(False)
    normed_linear(x, norm, weight).sum().backward()
    assert norm.weight.grad is None and weight.grad is not None and x.grad is not None


@pytest.mark.parametrize("replaced", [True, False])
def test_a_norm_that_is_another_or_hooked_is_called(replaced):
    x, norm, weight = make()
    if replaced:
        norm = nn.Sequential(norm, nn.Linear(6, 6, dtype=torch.float64))
    else:
        norm.register_forward_hook(lambda module, given, out: 2 * out)
    assert torch.equal(normed_linear(x, norm, weight), F.linear(norm(x), weight))
