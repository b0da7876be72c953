"""What the parts do with their modules and weights: every write is seen, every hook fires, what is kept is bounded."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from bench.baselines.plain_ipt import plain_copy
from ipt_fast import IPT, IPTConfig
from ipt_fast.model.layers import Attention, DecoderLayer, EncoderLayer, FeedForward, LayerNorm, MLPHead
from tests.saved_tensors import saved_bytes

SMALL = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=2, tasks=("sr2",))
MICRO = IPTConfig(n_feats=2, patch_size=6, num_heads=3, num_layers=1, tasks=("sr2", "derain"), memory_norm=True)
MODES = ("float32", "autocast", "bfloat16")


def output(model, mode="float32", tasks=None):
    size = model.config.patch_size
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        return torch.cat([model(x, task).flatten(1) for task in tasks or model.config.tasks], 1)


def make(config, mode="float32"):
    torch.manual_seed(0)
    return IPT(config).to(torch.bfloat16 if mode == "bfloat16" else torch.float32)


def fresh(model):
    """Return a network that never computed before, with the same parameters."""
    twin = IPT(model.config).to(next(model.body.parameters()).dtype).train(model.training)
    twin.load_state_dict({name: t.clone() for name, t in model.state_dict().items()})
    return twin


def write_data(p):
    p.data.mul_(3)


def write_copy(p):
    with torch.no_grad():
        p.copy_(p * 3)


def write_average(p):
    """Do what BasicSR and KAIR do for their averaged weights."""
    other = p.detach() * 9
    p.data.mul_(0.75).add_(other, alpha=0.25)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("write", [write_data, write_copy, write_average])
def test_every_write_to_every_parameter_is_seen(mode, write):
    model = make(MICRO, mode)
    unchanged = []
    before = {task: output(model, mode, [task]) for task in MICRO.tasks}
    for name, p in model.named_parameters():
        task = MICRO.tasks[name.startswith(("head.1", "tail.1"))]
        write(p)
        after = output(model.train(not model.training), mode, [task])
        assert torch.equal(after, output(fresh(model), mode, [task])), name
        if torch.equal(after, before[task]):
            unchanged.append(name)
        before[task] = after
    assert len(unchanged) < 0.2 * len(list(model.parameters())), unchanged  # a bias may drown in bfloat16


@pytest.mark.parametrize("mode", MODES)
def test_loaded_weights_are_seen(mode):
    model = make(MICRO, mode)
    before = output(model, mode)
    model.load_state_dict({name: t * 2 if t.is_floating_point() else t for name, t in model.state_dict().items()})
    assert torch.equal(output(model, mode), output(fresh(model), mode))
    assert not torch.equal(output(model, mode), before)


@pytest.mark.parametrize("mode", MODES[:2])
def test_a_fused_optimizer_after_a_compiled_step_is_seen(mode):
    model = make(MICRO, mode)
    before = output(model, mode)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, fused=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        step = torch.compile(lambda x: model(x, "sr2").square().mean(), backend="aot_eager")
        step(torch.rand(2, 3, 6, 6) * 255).backward()
    optimizer.step()
    assert torch.equal(output(model, mode), output(fresh(model), mode))
    assert not torch.equal(output(model, mode), before)


def test_copies_are_their_own():
    model = make(MICRO)
    before = output(model)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(output(twin), before)
    for p in twin.parameters():
        p.data.mul_(1.5)
    assert torch.equal(output(model), before) and not torch.equal(output(twin), before)


def test_a_network_made_on_meta_becomes_one_by_to_empty_and_init_weights():
    from ipt_fast.model.ipt import init_weights

    with torch.device("meta"):
        model = IPT(MICRO)
    assert all(t.is_meta for t in model.state_dict().values())
    torch.manual_seed(0)
    model.to_empty(device="cpu").apply(init_weights)
    assert torch.equal(output(model), output(make(MICRO)))


def test_what_init_weights_sets_does_not_follow_torchs_defaults():
    from ipt_fast.model.ipt import init_weights

    model, wanted = make(MICRO).to_empty(device="cpu"), make(MICRO).state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):  # stands for a GPU that is the default device
            model.apply(init_weights)
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("sub_mean.weight", "sub_mean.bias", "add_mean.bias", "body.position_encoding.position_ids"):
        assert torch.equal(model.state_dict()[name], wanted[name])


def test_inference_mode_serves_training_afterwards():
    model = make(MICRO)
    with torch.inference_mode():
        output(model)
    y = model(torch.rand(1, 3, 6, 6), "derain")
    y.sum().backward()
    assert model.body.decoder.layers[0].multihead_attn.in_proj_weight.grad is not None


def test_every_part_fires_its_hooks_once_a_call():
    model, fired = make(SMALL), []
    layers = [*model.body.encoder.layers, *model.body.decoder.layers]
    parts = [model, model.head[0], model.tail[0], model.body, model.body.encoder, model.body.decoder]
    parts += [model.body.linear_encoding, model.body.mlp_head, model.sub_mean, model.add_mean, *layers]
    parts += [part for layer in layers for part in (layer.self_attn, layer.self_attn.out_proj, layer.ffn)]
    parts += [layer.multihead_attn for layer in model.body.decoder.layers]
    for part in parts:
        part.register_forward_pre_hook(lambda module, args: fired.append(("pre", module)))
        part.register_forward_hook(lambda module, args, out: fired.append(("post", module)))
    for training in (True, False):
        fired.clear()
        with torch.set_grad_enabled(training):
            model.train(training)(torch.rand(1, 3, 12, 12), "sr2")
        for part in parts:
            assert fired.count(("pre", part)) == fired.count(("post", part)) == 1, part


@pytest.mark.parametrize("part", ["self_attn", "multihead_attn", "ffn"])
def test_what_a_hook_returns_is_used(part):
    model = make(SMALL)
    wanted = output(model)
    handle = model.body.decoder.layers[1].get_submodule(part).register_forward_hook(lambda m, a, out: out * 2)
    assert not torch.allclose(output(model), wanted)
    handle.remove()
    assert torch.equal(output(model), wanted)


class LoRA(nn.Module):
    """A wrapper as adapter libraries put it in a linear layer's place."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Doubled(nn.Module):
    """In the place of any module: twice its output."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, *args):
        return 2 * self.base(*args)


LINEAR = ("linear1", "linear2", "self_attn.out_proj", "multihead_attn.out_proj")
NORMS = ("norm1", "norm2", "norm3")


def layer_and_inputs():
    torch.manual_seed(0)
    return DecoderLayer(24, 3, 48), (torch.randn(2, 9, 24), torch.randn(2, 7, 24), torch.randn(9, 24))


def parent_of(layer, name):
    path, _, leaf = name.rpartition(".")
    return layer.get_submodule(path), leaf


def same_gradients(layer, inputs, wanted_layer):
    grads = []
    for network in (layer, wanted_layer):
        network.zero_grad()
        network(*inputs).square().sum().backward()
        grads.append([p.grad for p in network.parameters()])
    for ours, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("name", LINEAR)
def test_an_adapter_in_the_place_of_a_linear_layer_is_called(name):
    layer, inputs = layer_and_inputs()
    wanted = layer(*inputs)
    parent, leaf = parent_of(layer, name)
    base = getattr(parent, leaf)
    adapter = LoRA(base)
    setattr(parent, leaf, adapter)
    adapted = layer(*inputs)
    merged = copy.deepcopy(base)
    with torch.no_grad():
        merged.weight += adapter.up.weight @ adapter.down.weight
    setattr(parent, leaf, merged)
    torch.testing.assert_close(adapted, layer(*inputs))
    assert not torch.allclose(adapted, wanted)
    setattr(parent, leaf, base)
    assert torch.equal(layer(*inputs), wanted)


@pytest.mark.parametrize("name", [*NORMS, *LINEAR])
def test_any_other_module_in_a_place_is_called(name):
    layer, inputs = layer_and_inputs()
    parent, leaf = parent_of(layer, name)
    base = getattr(parent, leaf)
    setattr(parent, leaf, Doubled(base))
    doubled = layer(*inputs)
    twice = copy.deepcopy(base)
    for p in twice.parameters():
        p.data.mul_(2)
    setattr(parent, leaf, twice)
    torch.testing.assert_close(doubled, layer(*inputs))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("kind", ["hook", "parametrization"])
def test_weight_norm_is_honoured_on_and_off_again(name, kind):
    layer, inputs = layer_and_inputs()
    wanted = layer(*inputs)
    parent, leaf = parent_of(layer, name)
    module = getattr(parent, leaf)
    if kind == "hook":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(module)
        gain = module.weight_g
    else:
        parametrizations.weight_norm(module)
        gain = module.parametrizations.weight.original0
    torch.testing.assert_close(layer(*inputs), wanted)
    gain.data.mul_(2)
    assert not torch.allclose(layer(*inputs), wanted)
    changed = layer(*inputs)
    changed.sum().backward()
    assert gain.grad.abs().min() > 0
    if kind == "hook":
        nn.utils.remove_weight_norm(module)
    else:
        nn.utils.parametrize.remove_parametrizations(module, "weight")
    torch.testing.assert_close(layer(*inputs), changed)


def test_weight_norm_of_the_packed_projection_and_spectral_norm_and_pruning():
    layer, inputs = layer_and_inputs()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer.multihead_attn, "in_proj_weight")
    before = layer(*inputs)
    layer.multihead_attn.in_proj_weight_g.data.mul_(3)
    assert not torch.allclose(layer(*inputs), before)
    layer, inputs = layer_and_inputs()
    nn.utils.spectral_norm(layer.linear1)
    before = layer.eval()(*inputs)
    layer.linear1.weight_orig.data.add_(torch.randn_like(layer.linear1.weight_orig))
    assert not torch.allclose(layer(*inputs), before)
    layer, inputs = layer_and_inputs()
    prune.l1_unstructured(layer.linear2, "weight", 0.5)
    before = layer(*inputs)
    layer.linear2.weight_orig.data.mul_(2)
    assert not torch.allclose(layer(*inputs), before)


def test_a_replaced_part_of_mlp_head_and_tail_is_called():
    model = make(SMALL)
    x = torch.randn(2, 16, 36)
    head = model.body.mlp_head
    wanted = nn.Sequential(*head)(x)
    torch.testing.assert_close(head(x), wanted)
    head[2] = nn.GELU()
    torch.testing.assert_close(head(x), nn.Sequential(*head)(x))
    assert not torch.allclose(head(x), wanted)
    tail, x = model.tail[0], torch.randn(2, 4, 12, 12)
    wanted = nn.Sequential(*tail)(x)
    torch.testing.assert_close(tail(x), wanted, rtol=1e-4, atol=1e-4)
    tail[1] = Doubled(tail[1])
    torch.testing.assert_close(tail(x), 2 * wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [EncoderLayer, DecoderLayer])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_layer_has_the_gradients_of_its_modules(kind, dtype):
    torch.manual_seed(0)
    layer = kind(24, 3, 48).to(dtype)
    inputs = [torch.randn(*shape, dtype=dtype) for shape in ((2, 9, 24), (2, 7, 24), (9, 24))]
    inputs = inputs[:1] if kind is EncoderLayer else inputs
    modules = copy.deepcopy(layer)
    for name, module in list(modules.named_modules()):
        if isinstance(module, nn.Linear | LayerNorm):  # a subclass is not what the layer was built with
            module.__class__ = type("Other", (type(module),), {})
            assert name
    torch.testing.assert_close(layer(*inputs), modules(*inputs))
    same_gradients(layer, inputs, modules)


@pytest.mark.parametrize("recompute", [True, False])
def test_recomputed_or_kept_gives_the_gradients_of_the_plain_network(recompute):
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


@pytest.mark.parametrize("compiled", [False, True])
def test_recompute_is_honoured_compiled_or_not(compiled):
    model = IPT(IPTConfig(**{**SMALL.to_dict(), "num_layers": 1}))
    x = torch.rand(4, 3, 12, 12) * 255
    hidden = 4 * 16 * 4 * 36 * 4  # bytes: B N (4 D) float32
    kept = []
    for recompute in (True, False):
        model.set_recompute(recompute)
        torch.compiler.reset()
        network = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        network(x, "sr2")
        kept.append(saved_bytes(lambda network=network: network(x, "sr2"), model.parameters()))
    # Of an encoder layer, a decoder layer and the MLP; and, but for compilers, five norms and their statistics.
    normed = 0 if compiled else 5 * (hidden // 4 + 2 * 4 * 16 * 4)
    assert kept[1] - kept[0] == 3 * hidden + normed


def test_set_recompute_reaches_every_part():
    model = IPT(SMALL)
    parts = [part for part in model.modules() if isinstance(part, FeedForward | MLPHead)]
    assert len(parts) == 5 and all(part.recompute for part in parts)
    model.set_recompute(False)
    assert not any(part.recompute for part in parts)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_norm_of_16_bit_tokens_stays_in_16_bits_under_autocast(device):
    norm, x = LayerNorm(64).to(device), torch.randn(3, 64).to(device, torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        out = norm(x)
    exact = nn.functional.layer_norm(x.float(), (64,))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=2**-8, atol=1e-6)


def test_cross_attention_takes_memory_of_another_length():
    torch.manual_seed(0)
    attention, norm = Attention(24, 3).double(), LayerNorm(24).double()
    x, memory, E = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 9, 24), (2, 7, 24), (9, 24)))
    plain = nn.MultiheadAttention(24, 3, bias=False, batch_first=True, dtype=torch.float64)
    plain.load_state_dict(attention.state_dict())
    y = norm(x)
    torch.testing.assert_close(attention(x, norm, E, memory), plain(y + E, memory, memory)[0])
    torch.testing.assert_close(attention(x, norm, E), plain(y + E, y + E, y)[0])
    torch.testing.assert_close(attention(x, norm), plain(y, y, y)[0])
