"""What does ``accelerate`` bring on networks as people have them: whole networks, their tails, a DETR decoder layer?"""

import copy

import pytest
import torch

from bench.baselines.people_networks import EDSR, DetrDecoderLayer, SwinIR
from bench.case import Work
from ipt_fast import accelerate


def pytest_generate_tests(metafunc):
    metafunc.parametrize("contender", ["plain", "accelerated", "frozen"])


def prepared(network, contender, device):
    network = copy.deepcopy(network).to(device).eval()
    if contender != "plain":
        report = accelerate(network, frozen=contender == "frozen").report
        assert report.swapped and not report.refused
    return network


@pytest.mark.parametrize("size", [48, 96])
@pytest.mark.parametrize("scale", [2, 3, 4])
def bench_edsr(measure, device, small, contender, scale, size):
    """EDSR-baseline: 16 blocks, 64 features. ``accelerated`` composes the tail anew in each call, ``frozen`` once."""
    network = prepared(EDSR(scale, 64, blocks=2 if small else 16), contender, device)
    x = torch.rand(1, 3, size, size, device=device)
    run(measure, lambda: network(x), contender, f"EDSR-baseline x{scale} {size}x{size}", conv_flops(network, x))


@pytest.mark.parametrize("scale", [2, 4])
def bench_tail_of_two_attributes(measure, device, contender, scale):
    """Time the tail of SwinIR and HAT, 64 features: conv_last(upsample(x))."""
    network = prepared(SwinIR(scale, num_feat=64), contender, device)
    x = torch.rand(1, 64, 48, 48, device=device)
    run(measure, lambda: network.conv_last(network.upsample(x)), contender, f"SwinIR tail x{scale} 48x48", 0.0)


def bench_detr_decoder_layer(measure, device, contender):
    """DETR: 100 queries, a memory of 25x34, d_model=256, 8 heads, as DETR calls it: with the weights."""
    B, N, M, D = 2, 100, 850, 256
    network = prepared(DetrDecoderLayer(D, 8, 2048), contender, device)
    tgt, query_pos = torch.randn(N, B, D, device=device), torch.randn(N, B, D, device=device)
    memory, pos = torch.randn(M, B, D, device=device), torch.randn(M, B, D, device=device)
    flops = 2.0 * B * (N * D * D * 6 + M * D * D * 2 + 2 * N * N * D + 2 * N * M * D + 2 * N * D * 2048)
    call = lambda: network(tgt, memory, pos=pos, query_pos=query_pos)  # noqa: E731
    run(measure, call, contender, f"DETR decoder layer B={B} N={N} M={M}", flops)


def conv_flops(network, x):
    """Return those of the convolutions of the body; what the tail needs at least is little beside it."""
    body = sum(m.weight.numel() for m in network.body.modules() if isinstance(m, torch.nn.Conv2d))
    return 2.0 * body * x.shape[0] * x.shape[2] * x.shape[3]


def run(measure, network, contender, shape, flops):
    def call():
        with torch.no_grad():
            return network()

    measure(call, "accelerate", contender, shape, "float32", Work(flops=flops), baseline="plain")
