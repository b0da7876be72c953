"""The network against the released one: keys, sizes, outputs, features, gradients."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from ipt_fast import IPT, IPTConfig
from ipt_fast.model import PRESETS, preset
from ipt_fast.model.ipt import to_features, to_tokens
from ipt_fast.ops.patch_attention import backend_status

SMALL = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=2)


@pytest.fixture(scope="module")
def golden(shared):
    tensors = load_file(shared / "golden" / "ipt_official.safetensors")
    facts = json.loads((shared / "golden" / "ipt_official.json").read_text())
    c = facts["config"]
    config = IPTConfig(
        n_feats=c["n_feats"],
        num_heads=c["heads"],
        num_layers=c["layers"],
        patch_size=c["patch_size"],
        patch_dim=c["patch_dim"],
        tasks=tuple(c["tasks"]),
    )
    model = IPT(config)
    weights = {k.removeprefix("weights."): v.float() for k, v in tensors.items() if k.startswith("weights.")}
    mean = {k: v.clone() for k, v in model.state_dict().items() if "_mean." in k}
    model.load_state_dict(weights, strict=True)
    # The golden run rounded its weights to float16 but not the frozen mean shift, which only the file holds rounded.
    model.load_state_dict(mean, strict=False)
    return model, tensors, facts


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.fixture(params=[name for name, reason in backend_status("cpu").items() if reason is None])
def backend(request, monkeypatch):
    """Every backend of attention that runs here."""
    monkeypatch.setenv("IPT_FAST_IMPL", f"patch_attention={request.param}")


@pytest.mark.parametrize("task", range(6))
def test_output_equals_the_reference(golden, backend, task):
    model, tensors, _ = golden
    with torch.no_grad():
        y = model(tensors["input"], task)
    assert y.shape == tensors[f"output.task{task}"].shape
    assert relative(y, tensors[f"output.task{task}"]) < 1e-5


def test_contrastive_features_equal_the_reference(golden, backend):
    model, tensors, _ = golden
    with torch.no_grad():
        y, feats = model(tensors["input"], "sr2", return_features=True)
    assert relative(feats, tensors["contrastive_features.task0"]) < 1e-5
    assert relative(y, tensors["output.task0"]) < 1e-5


def test_gradient_norms_equal_the_reference(golden, backend):
    model, tensors, facts = golden
    model.zero_grad()
    x = tensors["input"]
    y = model(x, 0)
    (y - torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")).abs().mean().backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    wanted = facts["grad_norm_task0_l1_vs_nearest_upsample"]
    assert set(wanted) <= set(norms)
    for name, value in wanted.items():
        # A bias whose gradient is a sum of thousands of signs can cancel to almost nothing.
        assert norms[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_keys_and_shapes_are_the_released_ones(shared):
    wanted = json.loads((shared / "golden" / "ipt_pretrain_keys.json").read_text())
    with torch.device("meta"):
        state = IPT(PRESETS["base"]).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == wanted


def test_sizes_are_the_papers():
    with torch.device("meta"):
        base = IPT()
        sr2 = IPT(IPTConfig(tasks=("sr2",)))
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(base) == 118_892_394
    assert count(sr2) == 115_460_443


def test_deblur_preset_has_the_papers_tokens():
    with torch.device("meta"):
        model = IPT(PRESETS["deblur"])
        y = model(torch.empty(1, 3, 256, 256), "deblur")
    assert model.config.num_tokens == 1024 and model.config.embed_dim == 576
    assert y.shape == (1, 3, 256, 256)


@pytest.mark.parametrize(("task", "scale"), [("sr2", 2), ("sr3", 3), ("sr4", 4), ("derain", 1), ("denoise50", 1)])
def test_shapes(task, scale):
    y, feats = IPT(SMALL)(torch.rand(3, 3, 12, 12) * 255, task, return_features=True)
    assert y.shape == (3, 3, 12 * scale, 12 * scale)
    assert feats.shape == (3, 16, 36)


def test_token_order_is_row_major_and_channel_major():
    x = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    tokens = to_tokens(x, 3)
    assert torch.equal(tokens.transpose(1, 2), torch.nn.functional.unfold(x, 3, stride=3))
    assert torch.equal(to_features(tokens, 3, 6), x)


def test_layers_start_different():
    body = IPT(SMALL).body
    for layers in (body.encoder.layers, body.decoder.layers):
        first, second = (dict(layer.named_parameters()) for layer in layers)
        for name in ("self_attn.in_proj_weight", "linear1.weight", "linear2.bias"):
            assert not torch.equal(first[name], second[name]), name


def test_init_follows_the_reference():
    layer = IPT(IPTConfig(num_layers=1, tasks=("sr2",))).body
    D = 576
    kaiming, xavier = D**-0.5, (6 / (4 * D)) ** 0.5
    assert layer.encoder.layers[0].self_attn.in_proj_weight.abs().max().item() == pytest.approx(kaiming, rel=1e-2)
    assert layer.decoder.layers[0].multihead_attn.in_proj_weight.abs().max().item() == pytest.approx(xavier, rel=1e-2)
    assert layer.query_embed.weight.std().item() == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("flag", ["position_embed", "task_embed", "mlp"])
def test_a_part_switched_off_leaves_no_weights(flag):
    names = {"position_embed": "position_encoding", "task_embed": "query_embed", "mlp": "mlp_head"}
    model = IPT(replace(SMALL, **{flag: False}))
    assert not any(names[flag] in key for key in model.state_dict())
    assert model(torch.rand(1, 3, 12, 12), "sr2").shape == (1, 3, 24, 24)


def test_memory_norm_is_eq_2():
    plain, normed = IPT(SMALL), IPT(replace(SMALL, memory_norm=True))
    normed.load_state_dict(plain.state_dict(), strict=False)
    seen = []
    normed.body.decoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    x = torch.rand(1, 3, 12, 12) * 255
    assert not torch.allclose(normed(x, 0), plain(x, 0))
    assert seen[0].mean(-1).abs().max() < 1e-5
    assert torch.allclose(seen[0].var(-1, unbiased=False), torch.ones(()), atol=1e-2)


def test_decoder_features_are_taken_before_the_mlp():
    model = IPT(replace(SMALL, features_from="decoder"))
    decoded = []
    model.body.decoder.register_forward_hook(lambda *args: decoded.append(args[-1]))
    _, feats = model(torch.rand(2, 3, 12, 12), 0, return_features=True)
    assert torch.equal(feats, decoded[0])


def test_the_task_embedding_belongs_to_its_task():
    model = IPT(SMALL)
    x = torch.rand(1, 3, 12, 12) * 255
    before = model(x, "denoise30"), model(x, "derain")
    with torch.no_grad():
        model.body.query_embed.weight[4] += 1
    assert not torch.allclose(model(x, "denoise30"), before[0])
    assert torch.equal(model(x, "derain"), before[1])


def test_untouched_tasks_get_no_gradient():
    model = IPT(SMALL)
    model(torch.rand(1, 3, 12, 12), "sr3").mean().backward()
    assert all(p.grad is None for t in (0, 2, 3, 4, 5) for p in model.head[t].parameters())
    assert all(p.grad is None for t in (0, 2, 3, 4, 5) for p in model.tail[t].parameters())
    assert model.body.query_embed.weight.grad[[0, 2, 3, 4, 5]].abs().max() == 0
    assert not model.sub_mean.bias.requires_grad


def test_float64_gradcheck():
    model = IPT(IPTConfig(n_feats=1, patch_size=6, num_heads=1, num_layers=1, tasks=("sr2",))).double()
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x, 0, return_features=True), (x,))


def test_bf16_stays_near_float32_and_returns_float32():
    model = IPT(SMALL).eval()
    x = torch.rand(2, 3, 12, 12) * 255
    with torch.no_grad():
        y = model(x, "denoise30")
        low = model.bfloat16()(x, "denoise30")
    assert low.dtype == torch.float32
    assert relative(low - 128, y - 128) < 2e-2


def test_compiles_without_a_break():
    model = IPT(SMALL)
    x = torch.rand(2, 3, 12, 12) * 255
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, feats = compiled(x, "sr4", return_features=True)
    wanted = model(x, "sr4")
    assert relative(y, wanted) < 1e-5
    (y.mean() + feats.mean()).backward()
    assert model.body.linear_encoding.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("x", "task", "message"),
    [
        (torch.zeros(1, 3, 12, 13), 0, r"\[B, 3, 12, 12\], got \[1, 3, 12, 13\]"),
        (torch.zeros(3, 12, 12), 0, r"got \[3, 12, 12\]"),
        (torch.zeros(1, 1, 12, 12), 0, "got"),
        (torch.zeros(1, 3, 12, 12, dtype=torch.uint8), 0, "floating-point"),
        (torch.zeros(1, 3, 12, 12), "sr8", "'sr8' is not in this network"),
        (torch.zeros(1, 3, 12, 12), 6, "6 is not in this network"),
        (torch.zeros(1, 3, 12, 12), -1, "-1 is not in this network"),
    ],
)
def test_wrong_input_is_refused(x, task, message):
    with pytest.raises(ValueError, match=message):
        IPT(SMALL)(x, task)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 7}, "num_heads=7 does not divide the embedding 576"),
        ({"patch_dim": 5}, "patch_dim=5 does not divide patch_size=48"),
        ({"n_feats": 0}, "n_feats must be a whole number"),
        ({"tasks": ("sr2", "sr2")}, "each task once"),
        ({"tasks": ("sr9",)}, "'sr9' is not known"),
        ({"features_from": "head"}, "features_from"),
    ],
)
def test_wrong_config_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        IPTConfig(**values)


def test_config_survives_json():
    for config in PRESETS.values():
        assert IPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown fields"):
        IPTConfig.from_dict({"n_feat": 3})


def test_presets_can_be_changed():
    assert preset("tiny", num_layers=5).num_layers == 5
    with pytest.raises(ValueError, match="'huge' is not known"):
        preset("huge")
