"""Is the whole network faster than the same network written plainly, and how much less does a training step keep?"""

import copy

import pytest
import torch

from bench.baselines.plain_ipt import plain_copy
from bench.case import DTYPES, Work
from ipt_fast.inference import prepare_for_inference
from ipt_fast.losses import pretrain_loss
from ipt_fast.model import IPT, PRESETS

# One 48x48 sample at x2, forward, a multiply-add as two.
FLOPS = {"base": 66.6e9, "tiny": 1.09e9}
KEPT = "ipt_fast, hidden layers kept"
PREPARED = "ipt_fast, prepared"
PAIRS = [(dtype, contender) for dtype in DTYPES for contender in ("plain", "ipt_fast")]
COMPILED = "plain, torch.compile"  # last: compiling takes longer than measuring
FORWARD = [
    *PAIRS,
    ("bfloat16", "plain, weights cast"),
    *((dtype, PREPARED) for dtype in DTYPES),
    ("bfloat16", COMPILED),
]
TRAINING = [*PAIRS, *((dtype, KEPT) for dtype in DTYPES), ("bfloat16", COMPILED)]


@pytest.fixture(scope="module")
def preset(small):
    return "tiny" if small else "base"


@pytest.fixture(scope="module")
def network(preset, device):
    return IPT(PRESETS[preset]).to(device)


@pytest.fixture(scope="module")
def plain(network):
    return plain_copy(network)


def compiled(network, device):
    if device.type == "cpu":
        pytest.skip("compiling the network for a CPU takes longer than measuring it")
    torch.compiler.reset()
    return torch.compile(network)


def autocast(device, dtype):
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")


@pytest.mark.parametrize("dtype, contender", FORWARD)
def bench_forward(measure, device, preset, network, plain, contender, dtype):
    """bfloat16 by autocast, or with everything derived from the weights once, for a network that is only used."""
    model, cast = (plain if contender.startswith("plain") else network).eval(), contender.endswith("cast")
    B = 2 if preset == "tiny" else 64 if device.type == "cuda" else 8
    x = torch.rand(B, 3, 48, 48, device=device) * 255
    if cast:
        model, x = copy.deepcopy(model).to(DTYPES[dtype]), x.to(DTYPES[dtype])
    if contender == COMPILED:
        model = compiled(model, device)
    if contender == PREPARED:
        model = prepare_for_inference(model, "sr2", DTYPES[dtype])

    def call():
        with torch.no_grad(), autocast(device, "float32" if cast else dtype):
            return model(x, "sr2")

    work = Work(flops=B * FLOPS[preset])
    measure(call, "model", contender, f"{preset} x2 B={B}", dtype, work, baseline="plain float32")


@pytest.mark.parametrize("dtype, contender", TRAINING)
def bench_training_step(measure, device, preset, network, plain, contender, dtype):
    """Time a training step with hidden activations recomputed, or kept as the plain network's are."""
    model = (plain if contender.startswith("plain") else network).train()
    model = compiled(model, device) if contender == COMPILED else model
    network.set_recompute(contender != KEPT)
    B = 32 if device.type == "cuda" and preset == "base" else 2
    x = torch.rand(B, 3, 48, 48, device=device) * 255
    target = torch.rand(B, 3, 96, 96, device=device) * 255
    parameters = [p for p in model.parameters() if p.requires_grad]

    def call():
        with autocast(device, dtype):
            y, feats = model(x, "sr2", return_features=True)
            loss = pretrain_loss(y.float(), target, feats)[0]
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    options = {"direction": "forward+backward", "baseline": "plain float32", "capture": False}
    measure(call, "model", contender, f"{preset} x2 B={B}", dtype, Work(flops=3 * B * FLOPS[preset]), **options)
