"""The arithmetic of a step's memory: against what autograd keeps, and what is said before a run that cannot fit."""

import pytest
import torch

from ipt_fast.engine.config import apply_changes, recipe
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.memory import step_memory, warn_of_memory
from ipt_fast.model import IPT, preset
from tests.saved_tensors import saved_bytes


@pytest.mark.parametrize("recompute", ["on", "off"])
@pytest.mark.parametrize("task", ["denoise30", "sr2"])
def test_activations_are_what_autograd_keeps(recompute, task):
    """Of one sample of the tiny network, to a tenth; recomputed hidden layers are not there at the end of a forward."""
    config = recipe(
        "tiny", ["batch_size=1", "lam=0", "precision=fp32", f"recompute={recompute}", f"model.tasks={task}"]
    )
    model = IPT(config.model)
    model.set_recompute(recompute == "on")
    x = torch.rand(1, 3, 48, 48) * 255
    kept = saved_bytes(lambda: model(x, task), model.parameters())
    assert step_memory(config, DistInfo()).activations == pytest.approx(kept, rel=0.12)


def test_weights_gradients_and_moments():
    parameters = sum(p.numel() for p in IPT(preset("tiny")).parameters())
    for changes, each in ((["precision=fp32"], 16), (["precision=bf16"], 18), (["precision=fp32", "ema=0.9"], 20)):
        assert step_memory(recipe("tiny", changes), DistInfo()).weights == each * parameters


def test_moments_that_are_split_over_the_ranks():
    config, ranks = recipe("tiny", ["precision=fp32", "zero=true"]), DistInfo(world_size=4)
    parameters = sum(p.numel() for p in IPT(preset("tiny")).parameters())
    assert step_memory(config, ranks).weights == 10 * parameters


def test_the_dense_loss_grows_with_the_square_and_with_the_ranks(monkeypatch):
    base = recipe("base", ["precision=fp32"])
    bounded = step_memory(base, DistInfo())
    monkeypatch.setenv("IPT_FAST_IMPL", "eager")
    alone, ranks = step_memory(base, DistInfo()), step_memory(base, DistInfo(world_size=8))
    # B N = 256 x 256 tokens: three matrices of 65,536^2 float32
    assert alone.contrastive - 2 * 4 * 65536 * 576 == 3 * 4 * 65536**2
    assert ranks.contrastive * 8 == alone.contrastive and bounded.contrastive < 2**29
    local = step_memory(apply_changes(base, ["contrastive_scope=local"]), DistInfo(world_size=8))
    assert local.contrastive < ranks.contrastive / 7
    assert step_memory(apply_changes(base, ["lam=0"]), DistInfo()).contrastive == 0


def test_a_run_that_cannot_fit_is_warned_of(monkeypatch, caplog):
    config = recipe("base", ["precision=fp32", "recompute=off"])
    for gib, warned in ((1000, False), (16, True)):
        monkeypatch.setattr("ipt_fast.engine.memory.device_memory", lambda device, gib=gib: gib * 2**30)
        needed = warn_of_memory(config, DistInfo())
        assert bool(caplog.messages) == warned and needed.total > 16 * 2**30
    (said,) = caplog.messages
    assert said.startswith("this run will probably run out of memory: about ") and "the device has 16.0 GiB" in said
    assert "try a smaller batch_size, recompute=on, or more ranks" in said
