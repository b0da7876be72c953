"""16-bit copies of the weights for a step: what they are made of, what comes back, and what stays as it is."""

from contextlib import nullcontext

import pytest
import torch

from ipt_fast.engine.config import apply_changes
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.half_weights import HalfWeights
from ipt_fast.engine.step import TrainStep
from ipt_fast.model import IPT
from tests.engine.fakes import MICRO, fake_degrade, micro_config

NAMES = [name for name, _ in IPT(MICRO).named_parameters()]


def batch():
    torch.manual_seed(1)
    return torch.rand(4, 3, 12, 12) * 255, torch.rand(4, 3, 24, 24) * 255


def gradients(model, context=None):
    x, target = batch()
    model.zero_grad(set_to_none=True)
    with context or nullcontext():
        y = model(x, "sr2")
    (y - target).abs().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("by_layer", [False, True])
def test_gradients_are_float32_and_as_close_as_autocasts(by_layer):
    torch.manual_seed(0)
    model = IPT(MICRO)
    before = dict(model.named_parameters())
    wanted = gradients(model)
    cast = gradients(model, torch.autocast("cpu", torch.bfloat16))
    got = gradients(model, HalfWeights(model, torch.bfloat16, by_layer).instead())
    assert all(p is before[name] for name, p in model.named_parameters())
    for name, want in wanted.items():
        assert (got[name] is None) == (want is None), name  # head and tail of another task
        if want is not None:
            assert got[name].dtype == torch.float32
            assert (got[name] - want).norm() <= 1.5 * (cast[name] - want).norm() + 0.02 * want.norm(), name


def test_layer_by_layer_is_bit_by_bit_the_same():
    model = IPT(MICRO)
    contexts = [HalfWeights(model, torch.bfloat16, by_layer).instead() for by_layer in (False, True)]
    together, apart = (gradients(model, context).values() for context in contexts)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_a_gradient_reaches_its_weight_as_soon_as_the_backward_has_passed_the_layer():
    model, order = IPT(MICRO), []
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p, name=name: order.append(name))
    gradients(model, HalfWeights(model, torch.bfloat16, by_layer=True).instead())
    first = {part: min(i for i, n in enumerate(order) if part in n and n.endswith("in_proj_weight"))
             for part in ("encoder.layers.0", "decoder.layers.0")}  # fmt: skip
    assert first["decoder.layers.0"] < first["encoder.layers.0"] < order.index("body.linear_encoding.weight")


def test_norms_and_mean_colours_stay_float32_and_weights_come_back_after_an_error():
    model = IPT(MICRO)
    half = HalfWeights(model, torch.bfloat16, by_layer=False)
    with half.instead():
        wide = {name for name, t in module_tensors(model) if t.dtype == torch.float32}
    assert wide == {name for name in NAMES if ".norm" in name or name.startswith(("sub_mean", "add_mean"))}
    with pytest.raises(ValueError, match="needs x of shape"), half.instead():
        model(torch.zeros(1, 3, 5, 5), "sr2")
    assert all(t.dtype == torch.float32 for _, t in module_tensors(model))


def module_tensors(model):
    """Return what the modules compute with, in the place of each parameter."""
    return [(name, getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])) for name in NAMES]


def test_a_step_sees_the_weights_of_its_time():
    config = apply_changes(micro_config(), ["precision=bf16"])
    step = TrainStep(IPT(MICRO), config, DistInfo(), fake_degrade)
    x, target = batch()
    first = step(x, target, "sr2", 1e-3).read().total
    with torch.no_grad():
        for p in step.model.parameters():
            p.mul_(0.5)
    halved = step(x, target, "sr2", 1e-3).read().total
    assert abs(halved - first) > 1
