"""Products with laid-out weights: as exact as F.linear, and never those of weights that have changed since."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ipt_fast.model import packed_linear as module
from ipt_fast.model.blocks import Decoder, EncoderLayer
from ipt_fast.model.packed_linear import is_plain, linear

needs_bf16 = pytest.mark.skipif(not module._available(), reason="needs a CPU with AVX512-BF16 or AMX, and oneDNN")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(48, 80)


def bf16(x, layer):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return linear(x, layer.weight, layer.bias)


def is_close(out, x, layer):
    torch.testing.assert_close(out.float(), layer(x).detach(), rtol=0.02, atol=0.02)
    return True


@needs_bf16
@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (2, 3, 48), (2, 256, 48)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errs_no_more_than_f_linear(layer, shape, relu, with_bias, dtype):
    x, bias = torch.randn(shape).to(dtype), layer.bias if with_bias else None
    exact = F.linear(x.double(), layer.weight.double(), None if bias is None else bias.double())
    exact = exact.relu() if relu else exact
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = linear(x, layer.weight, bias, relu), F.linear(x, layer.weight, bias)
    theirs = theirs.relu() if relu else theirs
    assert layer.weight in module._PACKED
    assert ours.dtype == theirs.dtype == torch.bfloat16 and ours.shape == theirs.shape
    assert (ours - exact).abs().max() <= 1.01 * (theirs - exact).abs().max()


@needs_bf16
@pytest.mark.parametrize("change", ["copy_", "optimizer", "load_state_dict", "set_data", "replaced"])
def test_a_changed_weight_is_seen(layer, change):
    x = torch.randn(5, 48)
    before = bf16(x, layer)
    other = nn.Linear(48, 80)
    if change == "copy_":
        with torch.no_grad():
            layer.weight.copy_(other.weight)
    elif change == "optimizer":
        layer(x).square().mean().backward()
        torch.optim.SGD(layer.parameters(), lr=3.0).step()
    elif change == "load_state_dict":
        layer.load_state_dict(other.state_dict())
    elif change == "set_data":
        layer.weight.data = other.weight.data.clone()
    else:
        layer.weight = other.weight
    after = bf16(x, layer)
    assert (after - before).abs().max() > 0.1
    assert is_close(after, x, layer)


@needs_bf16
def test_a_call_that_learns_drops_what_is_kept(layer):
    x = torch.randn(5, 48)
    bf16(x, layer)
    with torch.autocast("cpu", torch.bfloat16):
        linear(x, layer.weight, layer.bias).sum().backward()
    layer.weight.data.mul_(2)  # what a fused optimizer does: the version counter does not move
    assert is_close(bf16(x, layer), x, layer)


@needs_bf16
def test_a_layer_that_learned_with_a_fused_optimizer_infers_with_its_new_weights():
    torch.manual_seed(0)
    layer = EncoderLayer(48, 4, 96)
    x = torch.randn(2, 9, 48)

    def infer():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    before = infer()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        exact = layer(x)
    error = (infer() - exact).norm() / exact.norm()
    assert error < 0.02 < (before - exact).norm() / exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_optimizer_is_seen_by_a_decoder_that_learned_compiled(dtype):
    """As a compiled training does: its calls drop nothing, and fused steps leave version counters as they are."""
    torch.manual_seed(0)
    decoder, x = Decoder(48, 4, 96, 2, memory_norm=True), torch.randn(2, 9, 48)

    def infer(network):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return network(x, x, None)

    infer(decoder)
    for p in decoder.parameters():
        p.grad = torch.randn_like(p)
    torch.optim.AdamW(decoder.parameters(), lr=0.1, fused=True).step()
    fresh = Decoder(48, 4, 96, 2, memory_norm=True)
    fresh.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(infer(decoder), infer(fresh))


@needs_bf16
def test_what_is_kept_goes_with_the_weight_and_is_not_copied():
    gc.collect()
    count = len(module._PACKED)
    layer = nn.Linear(48, 80)
    x = torch.randn(5, 48)
    bf16(x, layer)
    twin = copy.deepcopy(layer)
    assert len(module._PACKED) == count + 1
    with torch.no_grad():
        twin.weight.zero_()
    assert is_close(bf16(x, twin), x, twin) and is_close(bf16(x, layer), x, layer)
    del layer, twin
    gc.collect()
    assert len(module._PACKED) <= count


@pytest.mark.parametrize("case", ["float32", "float64", "float16", "learning", "inference tensor"])
def test_everything_else_is_f_linear(layer, case):
    x = torch.randn(5, 48, dtype=getattr(torch, case, torch.float32))
    layer = layer.to(x.dtype)
    if case == "inference tensor":
        with torch.inference_mode():
            weight = layer.weight.to(torch.bfloat16)
            out = linear(x.bfloat16(), weight)
        theirs = F.linear(x.bfloat16(), layer.weight.bfloat16())
    else:
        with torch.set_grad_enabled(case == "learning"):
            out = linear(x, layer.weight, layer.bias)
        theirs = F.linear(x, layer.weight, layer.bias)
        assert out.requires_grad == (case == "learning")
    assert layer.weight not in module._PACKED
    torch.testing.assert_close(out, theirs.detach(), rtol=0, atol=0)


def test_a_hooked_or_replaced_projection_is_called():
    layer, x = EncoderLayer(48, 4, 96), torch.randn(2, 9, 48)
    seen = []
    for linear_layer in (layer.self_attn.out_proj, layer.linear1, layer.linear2):
        assert is_plain(linear_layer)
        linear_layer.register_forward_hook(lambda module, args, out: seen.append(module))
        assert not is_plain(linear_layer)
    with torch.no_grad():
        layer(x)
    assert seen == [layer.self_attn.out_proj, layer.linear1, layer.linear2]
    layer.self_attn.out_proj = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48))
    with torch.no_grad():
        assert layer(x).shape == x.shape
