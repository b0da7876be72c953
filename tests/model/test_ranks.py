"""DDP and fully_shard over gloo ranks: they train and evaluate, with the plain network's numbers."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bench.baselines.plain_ipt import plain_copy
from ipt_fast import IPT, IPTConfig
from tests.ranks import run_ranks

CONFIG = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=2, tasks=("sr2",))
IMAGES, STEPS, LR = 2, 2, 1e-4


def batch(ranks):
    return torch.rand(ranks * IMAGES, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 255


def make():
    torch.manual_seed(0)
    return IPT(CONFIG).double()  # rounding would grow from step to step


def train_and_evaluate(network, x):
    """Losses of the steps, and the output afterwards."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=LR)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        y, feats = network(x, "sr2", return_features=True)
        # Every parameter of the network has a gradient.
        loss = (y / 255).square().mean() + feats.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    network.eval()
    with torch.no_grad():
        return torch.stack(losses), network(x, "sr2")


def shard(model, per_layer):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if per_layer:
        for layer in (*model.body.encoder.layers, *model.body.decoder.layers):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def run(rank, ranks, x):
    mine = x[rank * IMAGES : (rank + 1) * IMAGES]
    found = {"ddp": train_and_evaluate(DistributedDataParallel(make()), mine)}
    for per_layer in (True, False):
        found[f"fsdp {per_layer}"] = train_and_evaluate(shard(make(), per_layer), mine)
    return found


def rank_main(rank, ranks):
    return run(rank, ranks, batch(ranks))


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, tmp_path_factory):
    return run_ranks(rank_main, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp True", "fsdp False"])
def test_ranks_have_the_plain_networks_numbers(results, kind):
    losses, output = train_and_evaluate(plain_copy(make()), batch(len(results)))
    first, last = losses
    assert last != first
    torch.testing.assert_close(torch.stack([r[kind][0] for r in results]).mean(0), losses, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.cat([r[kind][1] for r in results]), output, rtol=1e-9, atol=1e-7)
