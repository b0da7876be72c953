"""The feed-forward network with its own backward equals the modules that it is made of, and keeps what it says."""

import copy

import pytest
import torch
from torch import nn

from ipt_fast.model import feed_forward as module
from ipt_fast.model.feed_forward import feed_forward
from ipt_fast.model.norm import LayerNorm
from tests.saved_tensors import saved_by


@pytest.fixture(params=[False, True], ids=["relu_", "epilogue"])
def epilogue(request, monkeypatch):
    """Both ways to make the hidden layer; the one with an epilogue is CUDA's, but serves everywhere."""
    monkeypatch.setattr(module, "_has_epilogue", lambda x: request.param)


def make(normed=True, dtype=torch.float32, D=6):
    layers = (LayerNorm(D) if normed else None, nn.Linear(D, 4 * D), nn.Linear(4 * D, D))
    for p in (p for layer in layers if layer for p in layer.parameters()):
        nn.init.normal_(p, std=0.5)
    return torch.randn(2, 5, D, dtype=dtype, requires_grad=True), [layer and layer.to(dtype) for layer in layers]


def plainly(x, norm, linear1, linear2):
    return linear2(torch.relu(linear1(x if norm is None else norm(x))))


def parameters(layers):
    return [p for layer in layers if layer for p in layer.parameters()]


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_value_and_every_gradient(epilogue, normed, recompute):
    x, layers = make(normed, torch.float64)
    leaves = [x, *parameters(layers)]
    weight = torch.randn_like(x)
    ours = feed_forward(x, *layers, recompute)
    ours = [ours, *torch.autograd.grad((ours * weight).sum(), leaves)]
    out = plainly(x, *layers)
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    for a, b in zip(ours, [out, *grads], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(x, *layers), ours[0])


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_errs_no_more_than_the_modules(epilogue, x_dtype):
    x, layers = make(D=64)
    x = x.detach().to(x_dtype).requires_grad_()
    exact_layers = copy.deepcopy(layers)
    leaves, exact_leaves = [x, *parameters(layers)], [x, *parameters(exact_layers)]
    exact = plainly(x.float(), *exact_layers)
    exact_grads = torch.autograd.grad(exact.square().sum(), exact_leaves)
    errors = []
    for function in (feed_forward, plainly):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(x, *layers)
        grads = torch.autograd.grad(out.float().square().sum(), leaves)
        assert out.dtype == torch.bfloat16 and [g.dtype for g in grads] == [p.dtype for p in leaves]
        pairs = zip([out, *grads], [exact, *exact_grads], strict=True)
        errors.append([((a.float() - b).norm() / b.norm()).item() for a, b in pairs])
    for ours, modules in zip(*errors, strict=True):
        assert ours <= 2 * modules + torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("recompute", [True, False])
def test_it_keeps_the_tokens_and_where_told_to_the_hidden_layer(recompute):
    x, layers = make()
    weights = {p.data_ptr() for p in parameters(layers)}
    kept = [t for t in saved_by(lambda: feed_forward(x, *layers, recompute)) if t.data_ptr() not in weights]
    assert kept[0].data_ptr() == x.data_ptr()
    assert [t.shape for t in kept[1:]] == ([] if recompute else [(2, 5, 24)])


def test_frozen_parameters_get_no_gradient():
    x, layers = make()
    layers[1].requires_grad_(False)
    feed_forward(x, *layers).sum().backward()
    assert layers[1].weight.grad is None and layers[1].bias.grad is None
    assert layers[0].weight.grad is not None and layers[2].weight.grad is not None and x.grad is not None


def test_a_hooked_norm_is_called():
    x, layers = make()
    layers[0].register_forward_hook(lambda module, given, out: 2 * out)
    assert torch.equal(feed_forward(x, *layers), plainly(x, *layers))


def test_a_module_in_the_place_of_a_linear_layer_is_called():
    x, (norm, linear1, linear2) = make()
    doubled = nn.Sequential(linear2, nn.Linear(6, 6))
    torch.testing.assert_close(feed_forward(x, norm, linear1, doubled), plainly(x, norm, linear1, doubled))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_norm_of_16_bit_tokens_stays_in_16_bits_under_autocast(device):
    norm, x = LayerNorm(64).to(device), torch.randn(3, 64).to(device, torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        out = norm(x)
    exact = nn.functional.layer_norm(x.float(), (64,))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=2**-8, atol=1e-6)
