"""NVTX ranges and memory snapshots, with stand-ins for the GPU; traces are in ``test_trainer``."""

import pytest
import torch

from ipt_fast.engine.config import ConfigError
from ipt_fast.engine.watch import Watch
from tests.engine.fakes import fake_degrade, make_trainer, micro_config


@pytest.mark.parametrize("options, name", [({"nvtx": True}, "--nvtx"), ({"snapshot_steps": 2}, "--memory-snapshot")])
def test_without_a_gpu_they_are_refused(options, name):
    Watch(trace_steps=2).check(torch.device("cpu"))
    Watch(**options).check(torch.device("cuda"))
    with pytest.raises(ConfigError, match=rf"{name} needs an NVIDIA GPU \(found cpu\)"):
        Watch(**options).check(torch.device("cpu"))
    with pytest.raises(ConfigError, match="to take a memory snapshot of must be at least 0"):
        Watch(snapshot_steps=-1)


def test_ranges_name_the_parts_of_a_step(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("torch.cuda.nvtx.range_push", seen.append)
    monkeypatch.setattr("torch.cuda.nvtx.range_pop", lambda: seen.append("end"))
    config = micro_config("model.tasks=derain", steps=1)
    make_trainer(tmp_path / "with", config, watch=Watch(nvtx=True)).train()
    assert seen == ["data", "end", "degrade", "end", "step derain", "end", "checkpoint", "end"]
    make_trainer(tmp_path / "without", config).train()
    assert len(seen) == 8


@pytest.mark.parametrize("fails", [False, True])
def test_a_snapshot_of_the_first_steps_or_of_those_there_were(tmp_path, monkeypatch, fails):
    """It is of use where memory has run out."""
    seen = []
    monkeypatch.setattr("torch.cuda.memory._record_memory_history", lambda enabled="all": seen.append(enabled))
    monkeypatch.setattr("torch.cuda.memory._dump_snapshot", lambda path: seen.append((path, trainer.step)))

    def degrade(*args, **options):
        if fails and trainer.step == 1:
            raise torch.OutOfMemoryError("no memory")
        return fake_degrade(*args, **options)

    trainer = make_trainer(tmp_path, micro_config(steps=4), degrade=degrade, watch=Watch(snapshot_steps=2))
    if fails:
        with pytest.raises(torch.OutOfMemoryError):
            trainer.train()
    else:
        trainer.train()
    assert seen == ["all", (str(tmp_path / "memory_rank0.pickle"), 1 if fails else 2), None]
