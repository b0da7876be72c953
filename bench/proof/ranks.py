"""A process group of one rank: NCCL on a GPU, gloo on a CPU. Joining, the buckets' hooks, collectives, leaving.

More ranks than one need more GPUs than one; what two and three ranks compute is in the tests, over gloo.
"""

import os
import socket
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.proof.check import Row, Setting, distance
from bench.proof.steps import make_batch, make_config
from ipt_fast.engine.distributed import destroy_process_group, init_distributed
from ipt_fast.engine.step import TrainStep
from ipt_fast.model import IPT
from ipt_fast.ops import degrade, patch_contrastive_loss


def check(setting: Setting) -> Iterator[Row]:
    """Yield rows: the group, its collectives, DistributedDataParallel's gradients, the loss over all ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    before = {name: os.environ.get(name) for name in one}
    os.environ.update(one)
    try:
        info = init_distributed()
        wanted = "nccl" if setting.device.type == "cuda" else "gloo"
        found = dist.get_backend()
        yield Row("a world of one", found == wanted and info.world_size == 1, f"{found} on {info.device}")
        yield _collectives(setting.device)
        yield _buckets(setting.device)
        yield _loss(setting.device)
        config = make_config(setting, "bf16" if torch.bfloat16 in setting.dtypes else "fp16", "graphs=off")
        step = TrainStep(IPT(config.model).to(setting.device), config, info, degrade)
        batch = make_batch(config, 1)
        result = step(*step.prepare(batch), batch.task, config.lr).read()
        yield Row("a step in the group", not result.skipped, f"loss {result.total:.2f}")
    finally:
        destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    yield Row("the group has ended", not dist.is_initialized(), "left")


def _collectives(device: torch.device) -> Row:
    x = torch.arange(1000.0, device=device)
    total, gathered = x.clone(), [torch.empty_like(x)]
    dist.all_reduce(total)
    dist.all_gather(gathered, x)
    dist.broadcast(total, 0)
    dist.barrier()
    same = torch.equal(total, x) and torch.equal(gathered[0], x)
    return Row("all_reduce, all_gather, broadcast, barrier", same, "the numbers come back" if same else "other numbers")


def _buckets(device: torch.device) -> Row:
    # By itself: with one rank a training step leaves DistributedDataParallel out.
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(300, 500), nn.ReLU(), nn.Linear(500, 10)).to(device)
    x = torch.randn(64, 300, device=device)
    plain = torch.autograd.grad(network(x).square().mean(), tuple(network.parameters()))
    parallel = DistributedDataParallel(network, bucket_cap_mb=0.2, gradient_as_bucket_view=True)
    parallel(x).square().mean().backward()
    worst = max(distance(p.grad, g) for p, g in zip(network.parameters(), plain, strict=True) if p.grad is not None)
    del parallel
    return Row("gradients through DistributedDataParallel", worst < 1e-6, f"at most {worst:.1e} from those without")


def _loss(device: torch.device) -> Row:
    features = torch.randn(4, 32, 64, device=device)
    apart = (patch_contrastive_loss(features, scope="global") - patch_contrastive_loss(features)).abs().item()
    return Row('the contrastive loss, scope="global"', apart < 1e-6, f"{apart:.1e} from that of this rank")
