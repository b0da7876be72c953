"""accelerate on attention with embeddings added to queries and keys, as DETR's decoder calls it."""

import copy
import sys

import pytest
import torch
from torch import nn

from bench.baselines.people_networks import DetrDecoderLayer
from ipt_fast import accelerate


@pytest.fixture
def calls(monkeypatch):
    """One entry for each attention that ran as patch_attention."""
    made = []
    module = sys.modules["ipt_fast.acceleration._attention"]
    original = module.patch_attention
    monkeypatch.setattr(module, "patch_attention", lambda *a, **k: made.append(1) or original(*a, **k))
    return made


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def inputs(B=2, N=7, M=19, D=32, dtype=torch.float32, batch_first=False):
    def draw(length):
        return torch.randn((B, length, D) if batch_first else (length, B, D), dtype=dtype)

    return {"tgt": draw(N), "memory": draw(M), "pos": draw(M), "query_pos": draw(N)}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_decoder_layer_gives_the_same(batch_first, context, calls):
    layer = DetrDecoderLayer(batch_first=batch_first).eval()
    given = inputs(batch_first=batch_first)
    with context():
        expected = layer(**given)
        report = accelerate(layer).report
        assert [path for path, _ in report.swapped] == ["self_attn", "multihead_attn"]
        assert relative(layer(**given), expected) < 1e-5
    assert len(calls) == 2


def test_one_query_and_one_key(calls):
    layer = DetrDecoderLayer().eval()
    given = inputs(B=1, N=1, M=1)
    with torch.no_grad():
        expected = layer(**given)
        accelerate(layer)
        assert relative(layer(**given), expected) < 1e-5
    assert len(calls) == 2


@pytest.mark.parametrize(
    "extra",
    [
        {"memory_key_padding_mask": torch.arange(19).expand(2, 19) > 12},
        {"tgt_mask": torch.ones(7, 7, dtype=torch.bool).triu(1)},
    ],
)
def test_masks_go_to_the_module_itself(extra, calls):
    layer = DetrDecoderLayer().eval()
    given = {**inputs(), **extra}
    with torch.no_grad():
        expected = layer(**given)
        accelerate(layer)
        assert torch.allclose(layer(**given), expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == 1  # the attention that has no mask


def test_dropout_goes_to_the_module_itself(calls):
    layer = DetrDecoderLayer(dropout=0.3).train()
    given = inputs()
    torch.manual_seed(1)
    expected = layer(**given)
    accelerate(layer)
    torch.manual_seed(1)
    assert torch.equal(layer(**given), expected)
    assert not calls


@pytest.mark.parametrize("need_weights", [True, False])
def test_gradients(need_weights, calls):
    attention = nn.MultiheadAttention(32, 4).double()
    plain = copy.deepcopy(attention)
    accelerate(attention)
    g = inputs(dtype=torch.float64)
    x, p = g["tgt"].requires_grad_(), g["query_pos"]
    results = []
    for module in (attention, plain):
        out, weights = module(x + p, x + p, x, need_weights=need_weights)
        loss = out.square().sum() + (weights.square().sum() if need_weights else 0)
        results.append(torch.autograd.grad(loss, [x, *module.parameters()]))
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 1e-12
    assert len(calls) == (0 if need_weights else 1)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("average", [True, False])
def test_weights_are_there_for_whoever_looks(batch_first, average, calls):
    attention = nn.MultiheadAttention(32, 4, batch_first=batch_first).eval()
    g = inputs(batch_first=batch_first)
    call = {"average_attn_weights": average}
    with torch.no_grad():
        expected = attention(g["tgt"] + g["query_pos"], g["memory"] + g["pos"], g["memory"], **call)
        accelerate(attention)
        out, weights = attention(g["tgt"] + g["query_pos"], g["memory"] + g["pos"], g["memory"], **call)
    assert len(calls) == 1
    assert relative(out, expected[0]) < 1e-5
    assert weights.shape == expected[1].shape and weights.dtype == expected[1].dtype
    assert torch.allclose(weights + 0, expected[1], atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", ["q is k", "k is v", "all differ"])
def test_every_pattern_of_shared_inputs(case, bias, calls):
    attention = nn.MultiheadAttention(32, 4, bias=bias).eval()
    if bias:
        nn.init.normal_(attention.in_proj_bias)
        nn.init.normal_(attention.out_proj.bias)
    g = inputs()
    q = g["tgt"]
    args = {"q is k": (q, q, q + 1), "k is v": (q, g["memory"], g["memory"]), "all differ": (q, g["memory"], g["pos"])}
    with torch.no_grad():
        expected = attention(*args[case])[0]
        accelerate(attention)
        assert relative(attention(*args[case])[0], expected) < 1e-5
    assert len(calls) == 1


def test_plain_self_attention_and_unbatched_inputs_go_to_the_module_itself(calls):
    attention = nn.MultiheadAttention(32, 4).eval()
    x, y = torch.randn(7, 2, 32), torch.randn(7, 32)
    with torch.no_grad():
        expected = attention(x, x, x)[0], attention(y, y, y + 1)[0]
        accelerate(attention)
        assert torch.equal(attention(x, x, x)[0], expected[0])
        assert torch.equal(attention(y, y, y + 1)[0], expected[1])
    assert not calls


def test_autocast_and_half_weights():
    layer = DetrDecoderLayer().eval()
    given = inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(**given)
        accelerate(layer)
        got = layer(**given)
    assert got.dtype == expected.dtype
    assert relative(got, expected) < 2e-2
    attention = nn.MultiheadAttention(32, 4).bfloat16().eval()
    accelerate(attention)
    q = given["tgt"].bfloat16()
    assert attention(q, q, q + 1)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "make,reason",
    [
        (lambda: nn.MultiheadAttention(8, 2, kdim=4), "another size"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv"),
        (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn"),
        (lambda: type("Mine", (nn.MultiheadAttention,), {})(8, 2), "Mine"),
    ],
)
def test_refuses_with_the_reason(make, reason):
    report = accelerate(nn.ModuleDict({"a": make()})).report
    assert not report.swapped
    assert report.refused[0][0] == "a" and reason in report.refused[0][1]


def test_refuses_hooks():
    attention = nn.MultiheadAttention(8, 2)
    attention.register_forward_pre_hook(lambda *_: None)
    report = accelerate(nn.Sequential(attention)).report
    assert "hooks" in report.refused[0][1]


def test_undo_idempotent_and_state():
    layer = DetrDecoderLayer()
    kinds = [type(m) for m in layer.modules()]
    state = {k: v.data_ptr() for k, v in layer.state_dict().items()}
    undo = accelerate(layer)
    assert accelerate(layer).report.already == ["self_attn", "multihead_attn"]
    assert {k: v.data_ptr() for k, v in layer.state_dict().items()} == state
    assert all(m.training for m in layer.modules())
    undo()
    assert [type(m) for m in layer.modules()] == kinds


def test_compiles():
    layer = DetrDecoderLayer().eval()
    given = inputs()
    with torch.no_grad():
        expected = layer(**given)
        accelerate(layer)
        got = torch.compile(layer, fullgraph=True, backend="eager")(**given)
    assert relative(got, expected) < 1e-5


def test_transformer_layers_of_torch():
    decoder = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True).eval()
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    with torch.no_grad():
        expected = decoder(x, memory), encoder(x)
        accelerate(decoder), accelerate(encoder)
        assert relative(decoder(x, memory), expected[0]) < 1e-5
        assert relative(encoder(x), expected[1]) < 1e-5
