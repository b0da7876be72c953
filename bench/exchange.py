"""What it costs to average gradients over ranks: DistributedDataParallel against classes of our own, on gloo.

python -m bench.exchange [--preset small] [--ranks 2] [--rounds 20]

The backward is that of a sum over all parameters, so that nearly all that is timed is the exchange. The time is the CPU
time of rank 0, all threads, least of the rounds: ranks that share cores do not wait for each other in it.
"""

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from ipt_fast.cli.tables import print_table
from ipt_fast.model import IPT, preset

BUCKET = 25 * 2**20
# Bytes that a rank reads and writes beside the collective, in units of the float32 gradients' bytes.
BYTES = {"none": 0.0, "copies": 6.0, "views": 2.0, "views, fp16": 3.0, "DDP": 2.0, "DDP, fp16": 6.0}


class Parameters(nn.Module):
    """Parameters whose sum is the loss."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.all = nn.ParameterList(p for p in network.parameters() if p.requires_grad)

    def forward(self) -> Tensor:
        """Return the sum, so that each gradient is one."""
        return torch.stack([p.sum() for p in self.all]).sum()


def buckets_of(module: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters, last one first, in buckets of 25 MiB."""
    buckets: list[list[nn.Parameter]] = [[]]
    for p in reversed(list(module.parameters())):
        if buckets[-1] and sum(q.nbytes for q in buckets[-1]) + p.nbytes > BUCKET:
            buckets.append([])
        buckets[-1].append(p)
    return buckets


def copies(buckets: list[list[nn.Parameter]], ranks: int) -> None:
    """Join the gradients of a bucket, sum, divide, and copy them back."""
    sent = []
    for bucket in buckets:
        flat = torch.cat([p.grad.reshape(-1) for p in bucket if p.grad is not None])
        sent.append((flat, dist.all_reduce(flat, async_op=True)))
    for bucket, (flat, work) in zip(buckets, sent, strict=True):
        work.wait()
        flat /= ranks
        parts = flat.split([p.numel() for p in bucket])
        torch._foreach_copy_([p.grad for p in bucket], [x.view_as(p) for x, p in zip(parts, bucket, strict=True)])


class Views:
    """Gradients that become views of flat buffers, by one copy; in 16 bits the sum is copied back."""

    def __init__(self, buckets: list[list[nn.Parameter]], dtype: torch.dtype):
        self.buckets = buckets
        self.flat = [torch.empty(sum(p.numel() for p in bucket), dtype=dtype) for bucket in buckets]

    def __call__(self, ranks: int) -> None:
        """Average the gradients."""
        sent = []
        for bucket, flat in zip(self.buckets, self.flat, strict=True):
            parts = flat.split([p.numel() for p in bucket])
            for part, p in zip(parts, bucket, strict=True):
                torch.mul(p.grad.reshape(-1), 1 / ranks, out=part)
            sent.append((bucket, parts, dist.all_reduce(flat, async_op=True)))
        for bucket, parts, work in sent:
            work.wait()
            for part, p in zip(parts, bucket, strict=True):
                if part.dtype == p.dtype:
                    p.grad = part.view_as(p)
                else:
                    p.grad.copy_(part.view_as(p))


def nothing() -> None:
    """Exchange nothing."""


def measure(rank: int, port: int, ranks: int, name: str, rounds: int, queue: "multiprocessing.Queue") -> None:
    """Time each way, on one rank of a group of their own."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    for way in BYTES:
        module = Parameters(IPT(preset(name)))
        call: nn.Module = module
        exchange: Callable[[], object] = nothing
        if way.startswith("DDP"):
            call = ddp = DistributedDataParallel(module, gradient_as_bucket_view=True)
            if "fp16" in way:
                ddp.register_comm_hook(None, fp16_compress_hook)
        elif way == "copies":
            exchange = partial(copies, buckets_of(module), ranks)
        elif way.startswith("views"):
            exchange = partial(Views(buckets_of(module), torch.float16 if "fp16" in way else torch.float32), ranks)
        best = float("inf")
        for _ in range(rounds):
            module.zero_grad(set_to_none=True)
            dist.barrier()
            begun = time.process_time()
            call().backward()
            exchange()
            best = min(best, time.process_time() - begun)
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in module.parameters() if p.grad is not None)
        if rank == 0:
            queue.put((way, best, sum(p.nbytes for p in module.parameters())))
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.exchange", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    given = (port, args.ranks, args.preset, args.rounds, queue)
    processes = [context.Process(target=measure, args=(rank, *given)) for rank in range(args.ranks)]
    for process in processes:
        process.start()
    results = [queue.get() for _ in BYTES]
    for process in processes:
        process.join()
    _, floor, size = results[0]
    rows = [
        (way, f"{BYTES[way] * size / 1e6:.0f}", f"{1e3 * seconds:.0f}", f"{1e3 * (seconds - floor):.0f}")
        for way, seconds, size in results
    ]
    title = f"{args.preset}, {size / 1e6:.0f} MB of gradients, {args.ranks} ranks"
    print_table(title, ("exchange", "MB beside it", "CPU ms", "less backward"), rows, ("MB beside it", "CPU ms"))


if __name__ == "__main__":
    main()
