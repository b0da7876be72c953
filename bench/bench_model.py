"""Is the whole network faster than the same network written plainly, and how much less does a training step keep?"""

import pytest
import torch

from bench.baselines.plain_ipt import plain_copy
from bench.case import Work
from ipt_fast.losses import pretrain_loss
from ipt_fast.model import IPT, PRESETS

# Multiply-adds of one 48x48 sample at x2 (forward), FLOP.
FLOPS = 66.6e9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def base(device):
    return IPT(PRESETS["base"]).to(device)


@pytest.fixture(scope="module")
def plain(base):
    return plain_copy(base)


def batches(device, small):
    if device.type == "cuda":
        return (16, 64)
    return (2,) if small else (8,)


def pytest_generate_tests(metafunc):
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES)
        metafunc.parametrize("contender", ["plain", "ipt_fast"])


def network_of(contender, base, plain, device, dtype):
    network = plain if contender == "plain" else base
    cast = torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")
    return network, cast


def bench_forward(measure, device, small, base, plain, contender, dtype):
    network, cast = network_of(contender, base, plain, device, dtype)
    B = batches(device, small)[-1]
    x = torch.rand(B, 3, 48, 48, device=device) * 255
    network.eval()

    def call():
        with torch.no_grad(), cast:
            return network(x, "sr2")

    work = Work(flops=B * FLOPS)
    measure(call, op="model", contender=contender, shape=f"base x2 B={B}", dtype=dtype, work=work, baseline="plain")


def bench_training_step(measure, device, small, base, plain, contender, dtype):
    network, cast = network_of(contender, base, plain, device, dtype)
    B = 32 if device.type == "cuda" else 2
    x = torch.rand(B, 3, 48, 48, device=device) * 255
    target = torch.rand(B, 3, 96, 96, device=device) * 255
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]

    def call():
        with cast:
            y, feats = network(x, "sr2", return_features=True)
            loss = pretrain_loss(y.float(), target, feats)[0]
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    measure(
        call,
        op="model",
        contender=contender,
        shape=f"base x2 B={B}",
        dtype=dtype,
        work=Work(flops=3 * B * FLOPS),
        direction="forward+backward",
        baseline="plain",
        capture=False,
    )
