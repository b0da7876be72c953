"""What the layers keep for the backward, and the decoder's one projection of its memory."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from bench.baselines.plain_ipt import plain_copy
from ipt_fast import IPT, IPTConfig
from ipt_fast.model.blocks import Decoder
from tests.saved_tensors import saved_bytes

SMALL = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=2, tasks=("sr2",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_training_step_keeps_two_fifths_of_the_plain_network(dtype):
    # The ratios of "base": d = 48, N = 256, FFN 4 D; as many layers as dwarf head and tail.
    model = IPT(IPTConfig(n_feats=16, num_heads=3, num_layers=6, tasks=("sr2",))).to(dtype)
    plain = plain_copy(model, need_weights=True)
    x = torch.rand(4, 3, 48, 48, dtype=dtype) * 255
    ours, theirs = (
        saved_bytes(lambda network=network: network(x, "sr2", return_features=True), network.parameters())
        for network in (model, plain)
    )
    assert ours <= 0.40 * theirs


@pytest.mark.parametrize("recompute", [True, False])
def test_what_is_made_again_or_kept_gives_the_same_gradients(recompute):
    model = IPT(SMALL).double()
    model.set_recompute(recompute)
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64) * 255
    plain = plain_copy(model)
    for network in (model, plain):
        y, feats = network(x, "sr2", return_features=True)
        (y.square().mean() + feats.square().mean()).backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        assert (grad - expected[name]).norm() <= 1e-10 * expected[name].norm(), name


def decoder():
    return Decoder(24, 3, 48, 3, memory_norm=False), torch.randn(2, 9, 24), torch.randn(2, 9, 24), torch.randn(9, 24)


def linear_calls(monkeypatch):
    """The shapes of all weights that F.linear multiplies with from now on."""
    shapes, original = [], F.linear

    def linear(x, weight, bias=None):
        shapes.append(tuple(weight.shape))
        return original(x, weight, bias)

    monkeypatch.setattr(F, "linear", linear)
    return shapes


def test_one_projection_of_the_memory_serves_all_layers_at_inference(monkeypatch):
    model, z, memory, E = decoder()
    wanted = model(z, memory, E).detach()
    shapes = linear_calls(monkeypatch)
    with torch.no_grad():
        out = model(z, memory, E)
    assert shapes.count((3 * 2 * 24, 24)) == 1
    # What is left of (48, 24): the projection of E for q and k in the self-attention, and the first FFN layer.
    assert shapes.count((48, 24)) == 3 + 3
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("change", ["copy_", "load", "optimizer", "training step"])
def test_changed_weights_are_seen(change):
    model, z, memory, E = decoder()
    with torch.no_grad():
        before = model(z, memory, E)
        weight = model.layers[1].multihead_attn.in_proj_weight
        if change == "copy_":
            weight.copy_(weight * 2)
        elif change == "load":
            model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})
    if change == "optimizer":
        model(z, memory, E).sum().backward()
        torch.optim.Adam(model.parameters(), lr=0.1, fused=True).step()
    elif change == "training step":
        model(z, memory, E).sum().backward()
        weight.data.mul_(2)  # counted by nobody
    with torch.no_grad():
        after = model(z, memory, E)
        wanted = z
        for layer in model.layers:
            wanted = layer(wanted, memory, E)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, wanted)


def test_kept_weights_follow_dtype_and_copies():
    model, z, memory, E = decoder()
    with torch.no_grad():
        wanted = model(z, memory, E)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(z, memory, E)
        torch.testing.assert_close(low.float(), wanted, rtol=0.1, atol=0.1)
        assert torch.equal(model(z, memory, E), wanted)
        other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        other.layers[0].multihead_attn.in_proj_weight.mul_(2)
        assert not torch.allclose(other(z, memory, E), wanted)
        assert torch.equal(model(z, memory, E), wanted)
        half = model.bfloat16()(z.bfloat16(), memory.bfloat16(), E.bfloat16())
        torch.testing.assert_close(half.float(), wanted, rtol=0.1, atol=0.1)


def test_inference_mode_serves_learning_afterwards():
    model, z, memory, E = decoder()
    with torch.inference_mode():
        model(z, memory, E)
    with torch.no_grad():
        out = model(z, memory, E)
    learning = model(z, memory.requires_grad_(), E)
    torch.testing.assert_close(learning, out)
    learning.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
