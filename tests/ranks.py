"""Gloo ranks in processes of their own."""

import gc
import time

import pytest
import torch
import torch.distributed as dist

PATIENCE = 300  # seconds for ranks that need a few


def run_ranks(function, ranks, folder):
    """Call ``function(rank, ranks)`` in as many processes and return what each gives; fail where they do not finish."""
    context = torch.multiprocessing.spawn(_main, (function, ranks, folder), nprocs=ranks, join=False)
    deadline = time.monotonic() + PATIENCE
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            alive = [process for process in context.processes if process.is_alive()]
            for process in alive:
                process.kill()
            pytest.fail(f"{len(alive)} of {ranks} ranks did not finish within {PATIENCE} s")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


def _main(rank, function, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.save(function(rank, ranks), f"{folder}/rank{rank}.pt")
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
