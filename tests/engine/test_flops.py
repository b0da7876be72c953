"""FLOPs of a step, and the peaks that they are a share of."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.baselines.plain_ipt import PlainIPT
from ipt_fast.engine.config import recipe
from ipt_fast.engine.flops import forward_flops, peak_flops, step_flops
from ipt_fast.gpus import find_gpu
from ipt_fast.model import preset


@pytest.mark.parametrize("changes", [[], ["model.mlp=false", "model.ffn_ratio=3"]])
@pytest.mark.parametrize("task", ["sr2", "sr3", "sr4", "denoise30"])
def test_they_are_those_of_the_network_as_written(task, changes):
    """The two mean shifts, 1x1 convolutions of 3 channels, are left out."""
    model = recipe("tiny", changes).model
    with torch.device("meta"):
        network, x = PlainIPT(model), torch.empty(1, 3, model.patch_size, model.patch_size)
    with FlopCounterMode(display=False) as counter:
        network(x, task)
    assert forward_flops(model, task) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_step_of_the_papers_network():
    assert step_flops(preset("base"), "sr2", 64) == pytest.approx(64 * 200e9, rel=0.01)


@pytest.mark.parametrize(
    "name, capability",
    [
        ("Tesla V100-SXM2-32GB", (7, 0)), ("NVIDIA A100-SXM4-80GB", (8, 0)), ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA H100 PCIe", None), ("NVIDIA GeForce RTX 4090", None),
    ],
)  # fmt: skip
def test_gpus_by_their_names(name, capability):
    gpu = find_gpu(name)
    assert gpu is None if capability is None else gpu.capability == capability


def test_the_peak_is_the_stated_one_or_that_of_a_known_gpu(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert peak_flops(recipe("base"), "bf16", cpu) is None
    assert peak_flops(recipe("base", ["peak_tflops=0.2"]), "bf16", cpu) == 0.2e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    assert peak_flops(recipe("base"), "fp16", cuda) == 100e12
    assert peak_flops(recipe("base"), "bf16", cuda) is None  # it has none
    assert peak_flops(recipe("base", ["tf32=true"]), "fp32", cuda) is None  # not known
    assert peak_flops(recipe("base", ["peak_tflops=90"]), "fp16", cuda) == 90e12
