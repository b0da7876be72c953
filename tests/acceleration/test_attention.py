"""accelerate on attention with embeddings added to queries and keys, as DETR's layers call it."""

import copy

import pytest
import torch
from torch import nn

from bench.baselines.people_networks import DetrDecoderLayer
from ipt_fast import accelerate
from tests.acceleration.networks import DetrEncoderLayer
from tests.ops.results import relative


def inputs(B=2, N=7, M=19, D=32, dtype=torch.float32, batch_first=False):
    def draw(length):
        return torch.randn((B, length, D) if batch_first else (length, B, D), dtype=dtype)

    return {"tgt": draw(N), "memory": draw(M), "pos": draw(M), "query_pos": draw(N)}


def both(attention, *args, **options):
    """Return outputs of the plain module and of an accelerated copy."""
    fast = copy.deepcopy(attention)
    assert accelerate(fast).report.swapped
    return attention(*args, **options), fast(*args, **options)


def assert_same(wanted, got, tolerance=1e-5):
    assert relative(got[0], wanted[0]) < tolerance
    assert (got[1] is None) == (wanted[1] is None)
    if wanted[1] is not None:
        assert torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_decoder_layer_gives_the_same(batch_first, context):
    layer = DetrDecoderLayer(batch_first=batch_first).eval()
    given = inputs(batch_first=batch_first)
    with context():
        expected = layer(**given)
        report = accelerate(layer).report
        assert [path for path, _ in report.swapped] == ["self_attn", "multihead_attn"]
        assert relative(layer(**given), expected) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", ["q is k", "k is v", "all differ", "one token", "all the same"])
@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"average_attn_weights": False}])
def test_every_pattern_of_shared_inputs(case, bias, batch_first, options):
    attention = nn.MultiheadAttention(32, 4, bias=bias, batch_first=batch_first).eval()
    if bias:
        nn.init.normal_(attention.in_proj_bias)
        nn.init.normal_(attention.out_proj.bias)
    g = inputs(batch_first=batch_first)
    q, m, one = g["tgt"], g["memory"], inputs(B=1, N=1, M=1)
    args = {
        "q is k": (q, q, q + 1),
        "k is v": (q, m, m),
        "all differ": (q, m, g["pos"]),
        "one token": (one["tgt"], one["memory"], one["pos"]),
        "all the same": (q, q, q),
    }[case]
    with torch.no_grad():
        assert_same(*both(attention, *args, **options))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "extra",
    [
        {"key_padding_mask": torch.arange(19).expand(2, 19) > 12},
        {"attn_mask": torch.zeros(7, 19).masked_fill(torch.arange(19) > 9, -1e4)},
        {"attn_mask": torch.ones(7, 19, dtype=torch.bool).triu(1), "is_causal": True},
    ],
)
def test_masks_go_to_the_module_itself(extra, need_weights):
    g = inputs()
    attention = nn.MultiheadAttention(32, 4).eval()
    with torch.no_grad():
        wanted, got = both(attention, g["tgt"], g["memory"] + 1, g["memory"], need_weights=need_weights, **extra)
    assert_same(wanted, got, 1e-12)


def test_dropout_goes_to_the_module_itself():
    layer = DetrDecoderLayer(dropout=0.3).train()
    given = inputs()
    torch.manual_seed(1)
    expected = layer(**given)
    accelerate(layer)
    torch.manual_seed(1)
    assert torch.equal(layer(**given), expected)


@pytest.mark.parametrize("need_weights", [True, False])
def test_gradients(need_weights):
    attention = nn.MultiheadAttention(32, 4).double()
    g = inputs(dtype=torch.float64)
    x, p = g["tgt"].requires_grad_(), g["query_pos"]
    fast = copy.deepcopy(attention)
    accelerate(fast)
    results = []
    for module in (attention, fast):
        out, weights = module(x + p, x + p, x, need_weights=need_weights)
        loss = out.square().sum() + (weights.square().sum() if need_weights else 0)
        results.append(torch.autograd.grad(loss, [x, *module.parameters()]))
    for a, b in zip(*results, strict=True):
        assert relative(b, a) < 1e-10


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_nan_query_gives_nan(need_weights):
    q, m = torch.randn(3, 2, 32), torch.randn(5, 2, 32)
    q[1, 0] = torch.nan
    with torch.no_grad():
        _, got = both(nn.MultiheadAttention(32, 4).eval(), q, m + 1, m, need_weights=need_weights)
    assert got[0][1, 0].isnan().all() and got[0].isnan().sum() == 32


def test_unbatched_and_wrong_inputs():
    y = torch.randn(7, 32)
    attention = nn.MultiheadAttention(32, 4).eval()
    with torch.no_grad():
        assert_same(*both(attention, y, y, y + 1, need_weights=False))
    accelerate(attention)
    x = torch.randn(7, 2, 32)
    for wrong in (x.double(), x[:, :, :8], x[:, :1], x[:3]):
        with pytest.raises((AssertionError, RuntimeError)):
            attention(x, x + 1, wrong, need_weights=False)


def test_half_weights():
    q = inputs()["tgt"].bfloat16()
    wanted, got = both(nn.MultiheadAttention(32, 4).bfloat16().eval(), q, q, q + 1, need_weights=False)
    assert got[0].dtype == torch.bfloat16 and relative(got[0], wanted[0]) < 2e-2


@pytest.mark.parametrize(
    "make,reason",
    [
        (lambda: nn.MultiheadAttention(8, 2, kdim=4), "another size"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv"),
        (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn"),
        (lambda: type("Mine", (nn.MultiheadAttention,), {})(8, 2), "Mine"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.MultiheadAttention(8, 2), "in_proj_weight"), "parametrised"),
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
    assert "forward pre hooks" in report.refused[0][1]


def test_a_parametrization_of_later_is_honoured_and_survives_undo():
    attention, g = nn.MultiheadAttention(32, 4).eval(), inputs()
    args = (g["tgt"], g["memory"] + 1, g["memory"])
    with torch.no_grad():
        wanted = attention(*args, need_weights=False)[0]
        undo = accelerate(attention)
        nn.utils.parametrizations.weight_norm(attention, "in_proj_weight")
        assert relative(attention(*args, need_weights=False)[0], wanted) < 1e-5
        undo()
        assert relative(attention(*args, need_weights=False)[0], wanted) < 1e-5
        nn.utils.parametrize.remove_parametrizations(attention, "in_proj_weight")
    assert type(attention) is nn.MultiheadAttention


def test_what_is_returned_does_not_change_with_later_weights_or_modes():
    attention, g = nn.MultiheadAttention(32, 4, dropout=0.5).eval(), inputs()
    with torch.no_grad():
        wanted, got = both(attention, g["tgt"], g["memory"] + 1, g["memory"])
        fast = copy.deepcopy(attention)
        accelerate(fast)
        kept = fast(g["tgt"], g["memory"] + 1, g["memory"])[1]
        fast.train()
        fast.in_proj_weight.mul_(3)
    assert type(got[1]) is torch.Tensor
    assert torch.equal(kept, wanted[1])


def test_transformer_layers_of_torch():
    decoder = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True).eval()
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    with torch.no_grad():
        expected = decoder(x, memory), encoder(x)
        accelerate(decoder), accelerate(encoder)
        assert relative(decoder(x, memory), expected[0]) < 1e-5
        assert relative(encoder(x), expected[1]) < 1e-5


def test_encoder_layer_with_masks():
    layer = DetrEncoderLayer().eval()
    x, pos, mask = torch.randn(7, 2, 32), torch.randn(7, 1, 32), torch.arange(7).expand(2, 7) > 4
    with torch.no_grad():
        wanted = [layer(x, pos=pos), layer(x), layer(x, src_key_padding_mask=mask, pos=pos)]
        accelerate(layer)
        got = [layer(x, pos=pos), layer(x), layer(x, src_key_padding_mask=mask, pos=pos)]
    assert all(relative(a, b) < 1e-5 for a, b in zip(got, wanted, strict=True))
