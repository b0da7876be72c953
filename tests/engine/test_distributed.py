"""Ranks that meet in the store of torchrun's agent, which outlives them."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ipt_fast.engine.config import ConfigError
from ipt_fast.engine.distributed import GradientAllReduce, destroy_process_group, init_distributed
from ipt_fast.model import IPT
from tests.engine.fakes import MICRO


def torchrun(monkeypatch, port, restarts=0, machines=1):
    """Set the environment that torchrun's agent gives to its ranks."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "GROUP_WORLD_SIZE": machines}
    names |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": restarts}
    for name, value in {**names, "TORCHELASTIC_MAX_RESTARTS": 3, "RANK": 0}.items():
        monkeypatch.setenv(name, str(value))


def join_and_die(rank):
    os.environ["RANK"] = str(rank)
    torch.cuda.is_available = lambda: False  # a CUDA context does not survive the fork
    info = init_distributed()
    total = torch.tensor(float(rank + 1))
    dist.all_reduce(total)
    os._exit(0 if info.world_size == 2 and total == 3 else 1)


def test_ranks_started_again_do_not_call_dead_ones(monkeypatch):
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    for restarts in range(2):
        torchrun(monkeypatch, agent.port, restarts)
        ranks = [context.Process(target=join_and_die, args=(rank,)) for rank in range(2)]
        for process in ranks:
            process.start()
            time.sleep(1)  # the first rank is alone with what the last start has left
        for process in ranks:
            process.join(30)
            process.kill()
        assert [process.exitcode for process in ranks] == [0, 0]


def threads():
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_the_group_ends_with_its_threads_though_a_network_lives_on(tmp_path):
    before = threads()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    own = threads() - before
    gradients = GradientAllReduce(IPT(MICRO), 2)
    assert own
    destroy_process_group()
    assert not own & threads() and gradients.module is not None


def test_several_machines_and_restarts_are_refused_with_the_way_out(monkeypatch):
    torchrun(monkeypatch, 1, machines=2)
    with pytest.raises(RuntimeError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        init_distributed()


def test_bf16_on_cpu_ranks_is_refused():
    with pytest.raises(ConfigError, match=r"allreduce=bf16 needs GPUs: .* take fp16 or fp32"):
        GradientAllReduce(IPT(MICRO), 2, "bf16")
