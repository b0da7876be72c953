"""Layers trained by branches: the gradients of the layers as they read, and where they are left aside."""

import copy

import pytest
import torch
from torch import nn

from ipt_fast.model import IPT, IPTConfig
from ipt_fast.model.blocks import normed_ffn
from ipt_fast.model.layers import Decoder, DecoderLayer, Encoder

SMALL = IPTConfig(n_feats=4, patch_size=12, patch_dim=3, num_heads=3, num_layers=2, tasks=("sr2", "derain"))


def as_it_reads(network):
    """Return a twin whose parts are called one by one, as for somebody who watches them."""
    twin = copy.deepcopy(network)
    for module in twin.modules():
        if hasattr(module, "ffn"):
            module.ffn.register_forward_hook(lambda *_: None)
    return twin


def results(network, *inputs, recompute=True):
    for module in network.modules():
        if hasattr(module, "recompute"):
            module.recompute = recompute
    inputs = [x if x is None else x.detach().clone().requires_grad_() for x in inputs]
    out = network(*inputs)
    out.square().mean().backward()
    return [out.detach(), *(x.grad for x in inputs if x is not None), *(p.grad for p in network.parameters())]


def graph_of(tensor):
    """Return the names of the nodes that autograd has recorded."""
    nodes, seen = [tensor.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return {node.name() for node in seen}


def layers_and_inputs(dtype=torch.float64):
    torch.manual_seed(0)
    encoder, decoder = Encoder(24, 3, 48, 2).to(dtype), Decoder(24, 3, 48, 2, False).to(dtype)
    for p in [*encoder.parameters(), *decoder.parameters()]:
        if p.dim() == 1:
            nn.init.normal_(p)
    return encoder, decoder, [torch.randn(size, dtype=dtype) for size in ((2, 9, 24), (2, 9, 24), (2, 7, 24), (9, 24))]


@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_are_those_of_the_layers_as_they_read(recompute):
    encoder, decoder, (x, memory, short, E) = layers_and_inputs()
    cases = [(encoder, x), *((decoder, x, m, e) for m in (memory, short) for e in (E, None))]
    cases += [(decoder.layers[0], x, memory, E)]
    for network, *inputs in cases:
        wanted = results(as_it_reads(network), *inputs)
        network.zero_grad()
        for ours, want in zip(results(network, *inputs, recompute=recompute), wanted, strict=True):
            torch.testing.assert_close(ours, want)


def test_a_frozen_weight_and_a_frozen_embedding_are_left_without_gradient():
    _, decoder, (x, memory, _, E) = layers_and_inputs()
    decoder.layers[1].self_attn.in_proj_weight.requires_grad_(False)
    wanted = as_it_reads(decoder)
    for network in (decoder, wanted):
        network(x, memory, E).square().mean().backward()  # E has none either
    assert decoder.layers[1].self_attn.in_proj_weight.grad is None
    for ours, want in zip(decoder.parameters(), wanted.parameters(), strict=True):
        assert (ours.grad is None) == (want.grad is None)
        if want.grad is not None:
            torch.testing.assert_close(ours.grad, want.grad)


@pytest.mark.parametrize("watched", [None, 0, 1, 2])
def test_the_memorys_gradients_are_added_up_on_their_way_and_again_by_a_second_backward(watched):
    torch.manual_seed(0)
    decoder = Decoder(24, 3, 48, 3, False).double()
    if watched is not None:
        decoder.layers[watched].register_forward_hook(lambda *_: None)
    z, memory, E = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 9, 24), (2, 7, 24), (9, 24))
    )
    (want,) = torch.autograd.grad(as_it_reads(decoder)(z, memory, E).square().mean(), memory)
    loss = decoder(z, memory, E).square().mean()
    first, second = (torch.autograd.grad(loss, memory, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, want)
    assert torch.equal(first, second)


def test_a_layer_that_is_watched_is_called_part_by_part_among_others_that_are_not():
    _, decoder, (x, memory, _, E) = layers_and_inputs()
    wanted = results(as_it_reads(decoder), x, memory, E)
    calls = []
    decoder.layers[1].multihead_attn.register_forward_hook(lambda *_: calls.append(1))
    for ours, want in zip(results(decoder, x, memory, E), wanted, strict=True):
        torch.testing.assert_close(ours, want)
    assert calls == [1]


def test_the_network_trains_by_branches_and_no_gradient_is_joined():
    model = IPT(SMALL)
    names = graph_of(model(torch.rand(2, 3, 12, 12) * 255, "sr2"))
    assert {"_NormedAttentionBackward", "_NormedFFNBackward", "_ProjectBackward"} <= names
    assert not names & {"SplitBackward0", "SliceBackward0"}
    watched = graph_of(as_it_reads(model)(torch.rand(2, 3, 12, 12) * 255, "sr2"))
    assert "_NormedFFNBackward" not in watched


def test_a_choice_of_backend_without_a_backward_is_honoured(monkeypatch):
    monkeypatch.setenv("IPT_FAST_IMPL", "eager")
    model = IPT(SMALL)
    x = torch.rand(2, 3, 12, 12) * 255
    y = model(x, "sr2")
    assert "_NormedFFNBackward" not in graph_of(y)
    (grad,) = torch.autograd.grad(y.sum(), [model.body.linear_encoding.weight], create_graph=True)
    torch.autograd.grad(grad.square().sum(), [model.body.linear_encoding.weight])  # twice, as eager can


def test_stream_and_branch_may_have_gradients_of_their_own():
    encoder, _, (x, branch, *_) = layers_and_inputs()
    layer = encoder.layers[0]
    grads = []
    for by_branches in (True, False):
        layer.zero_grad()
        if by_branches:
            stream, out = normed_ffn(layer.way(x), x, branch, layer.norm2, layer.linear1, layer.linear2)
        else:
            stream = x + branch
            out = layer.linear2(layer.linear1(layer.norm2(stream)).relu())
        (stream.square().sum() + out.mean()).backward()
        grads.append([p.grad for p in layer.parameters() if p.grad is not None])
    for ours, want in zip(*grads, strict=True):
        torch.testing.assert_close(ours, want)


def test_a_layer_on_its_own_needs_no_projection():
    _, decoder, (x, memory, _, E) = layers_and_inputs()
    layer = decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    torch.testing.assert_close(layer(x, memory, E), as_it_reads(layer)(x, memory, E))
