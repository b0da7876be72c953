"""Which activations would leave float16, on networks that do and do not."""

import json

import pytest
import torch
import torch.nn.functional as F

from ipt_fast import IPT, IPTConfig
from ipt_fast.degradations.bicubic import bicubic_down
from ipt_fast.evaluation.audit import LIMIT, MARGIN, audit, audit_windows

TASKS = ("sr2", "denoise30")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return IPT(IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, tasks=TASKS, memory_norm=True))


@pytest.fixture(scope="module")
def photo():
    return torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def inputs(model, photo):
    return audit_windows(model.config, [photo], 3)


def peaks(model, inputs):
    return {layer.layer: layer for layer in audit(model, inputs).layers}


def test_every_layer_is_there_heads_first(model, inputs):
    found = list(peaks(model, inputs))
    weights = {
        name.removesuffix(".weight").removesuffix("_weight")
        for name, p in model.named_parameters()
        if name.endswith("weight") and not name.startswith(("sub_", "add_", "body.query", "body.position"))
    }
    attentions = [name.removesuffix(".in_proj") for name in weights if name.endswith("in_proj")]
    assert set(found) == weights | {f"{a}.{part}" for a in attentions for part in ("scores", "attention")}
    parts = [name.partition(".")[0] for name in found]
    assert parts == sorted(parts, key=["head", "body", "tail"].index)


def test_peaks_are_those_of_the_tensors(model, inputs):
    found = peaks(model, inputs)
    conv = model.head[1][0]
    y = conv(model.sub_mean(inputs["denoise30"]))
    assert found["head.1.0"].input == model.sub_mean(inputs["denoise30"]).abs().max().item()
    assert found["head.1.0"].weight == conv.weight.abs().max().item()
    assert found["head.1.0"].output == pytest.approx(y.abs().max().item())
    layer = model.body.encoder.layers[0]
    seen = []
    layer.self_attn.out_proj.register_forward_hook(lambda module, given, made: seen.append((given[0], made)))
    for task in TASKS:
        model(inputs[task], task)
    attended = max(given.abs().max().item() for given, _ in seen)
    assert found["body.encoder.layers.0.self_attn.attention"].output == pytest.approx(attended)
    assert found["body.encoder.layers.0.self_attn.out_proj"].input == pytest.approx(attended)


def test_a_safe_network(model, inputs):
    result = audit(model, inputs)
    assert result.safe and result.windows == 3
    assert result.verdict().startswith(f"float16 is safe: largest |x| {result.worst.peak:,.1f} in {result.worst.layer}")
    half = IPT(model.config)
    half.load_state_dict(model.state_dict())
    assert half.half()(inputs["sr2"], "sr2").isfinite().all()


def test_one_layer_overflows(model, inputs):
    layer = model.body.decoder.layers[0]
    before = peaks(model, inputs)["body.decoder.layers.0.linear1"].output
    with torch.no_grad():
        layer.linear1.weight *= 2e5
        layer.linear2.weight /= 1e12
    result = audit(model, inputs)
    over = [found.layer for found in result.layers if found.peak > LIMIT]
    # what it gives, and what takes it
    assert over == ["body.decoder.layers.0.linear1", "body.decoder.layers.0.linear2"]
    assert result.worst.layer in over and before < LIMIT / MARGIN
    assert not result.safe and "it overflows; use bf16 or fp32" in result.verdict()
    y = F.linear(torch.full((1, 36), 100.0).half(), layer.linear1.weight.half())
    assert y.isinf().any()  # as float16 itself sees it


def test_within_float16_but_not_by_the_margin(model, inputs):
    conv = model.head[0][0]
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.fill_(LIMIT / 2)
    result = audit(model, {"sr2": inputs["sr2"]})
    found = next(layer for layer in result.layers if layer.layer == "head.0.0")
    assert found.output == LIMIT / 2 and not result.safe


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_not_safe(model, inputs, value):
    with torch.no_grad():
        model.body.encoder.layers[0].linear1.bias[3] = value
    result = audit(model, inputs)
    assert not result.safe and result.worst.peak != 0 and "use bf16 or fp32" in result.verdict()
    assert json.loads(json.dumps(result.note(), allow_nan=False))["peak"] in ("nan", "inf")


def test_windows_are_degraded_crops(model, photo):
    inputs = audit_windows(model.config, [photo], 2)
    assert {task: tuple(x.shape) for task, x in inputs.items()} == dict.fromkeys(TASKS, (2, 3, 12, 12))
    assert torch.equal(inputs["sr2"], audit_windows(model.config, [photo], 2)["sr2"])
    whole = photo[:, :24, :24]
    assert torch.equal(audit_windows(model.config, [whole], 1)["sr2"], bicubic_down(whole[None].float(), 2))


def test_small_photos_are_refused_by_name(model):
    with pytest.raises(ValueError, match="sr2 needs a photo of at least 24x24 pixels"):
        audit_windows(model.config, [torch.zeros(3, 20, 30, dtype=torch.uint8)], 1)


def test_half_precision_weights_are_refused(model, inputs):
    with pytest.raises(ValueError, match="needs a network in float32"):
        audit(model.half(), inputs)
