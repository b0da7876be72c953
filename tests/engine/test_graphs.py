"""Steps taken from buffers, as a CUDA graph takes them: the same weights bit by bit, all tasks, skipped steps too."""

from dataclasses import replace

import pytest
import torch

from ipt_fast.engine.config import ConfigError, apply_changes
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.graphs import StepGraphs, unavailable_reason
from ipt_fast.engine.precision import LossScale
from ipt_fast.engine.step import TrainStep
from ipt_fast.model import IPT
from ipt_fast.tasks import TASKS, get_task
from tests.engine.fakes import MICRO, fake_degrade, micro_config

SIX = replace(MICRO, tasks=TASKS)
LR = 2.0**-10  # the same in float32


def make_step(config, device, start):
    torch.manual_seed(0)
    step = TrainStep(IPT(SIX).to(device), config, DistInfo(device=device), fake_degrade)
    if start:
        step.scale = LossScale(True, device, start=start, interval=3)
    return step


def run(step, steps, device):
    """Return what each step said; the tasks in turn, a few batches with an inf."""
    results = []
    for i in range(steps):
        task, draw = TASKS[i % len(TASKS)], torch.Generator().manual_seed(i)
        side = 12 * get_task(task).scale
        x = torch.rand(4, 3, 12, 12, generator=draw) * 255
        if i % 17 == 11:
            x[0, 0, 0, 0] = torch.inf
        target = torch.rand(4, 3, side, side, generator=draw) * 255
        x, target = x.to(device), target.to(device)
        outcome = step(x, target, task, LR / 2 ** (i % 3), stop=i == 5)
        x.fill_(torch.nan)  # it has been copied
        results.append(outcome.read())
    return results


def compared(graphed, eager, steps, device):
    ours, wanted = run(graphed, steps, device), run(eager, steps, device)
    for a, b in zip(ours, wanted, strict=True):
        assert (a.skipped, a.rescaled, a.stop) == (b.skipped, b.rescaled, b.stop)
        assert a.skipped or (a.total, a.grad_norm) == (b.total, b.grad_norm)
    for (name, a), b in zip(graphed.model.state_dict().items(), eager.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    states = [step.state_dict() for step in (graphed, eager)]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert states[0]["optimizer"]["param_groups"] == states[1]["optimizer"]["param_groups"]
    for ema in zip(*(state["ema"].values() for state in states), strict=True):
        assert torch.equal(*ema)
    return ours


@pytest.mark.parametrize("start", [None, 2.0**66], ids=["unscaled", "a loss scale too high"])
def test_steps_from_buffers_are_those_launched_one_by_one(start):
    device, config = torch.device("cpu"), apply_changes(micro_config(), ["ema=0.9", "clip_grad=1"])
    graphed, eager = make_step(config, device, start), make_step(config, device, start)
    graphed.graphs = StepGraphs(graphed._compute, device)  # noqa: SLF001 - what would be recorded
    results = compared(graphed, eager, 50, device)
    assert [i for i, r in enumerate(results) if r.stop] == [5]
    assert sum(r.skipped for r in results) >= 3 and not all(r.skipped for r in results)
    assert any(r.rescaled for r in results) == bool(start)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_recorded_steps_are_those_launched_one_by_one(device, precision):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    config = apply_changes(micro_config(), ["ema=0.9", f"precision={precision}"])
    graphed, eager = (make_step(apply_changes(config, [f"graphs={on}"]), device, None) for on in ("on", "off"))
    compared(graphed, eager, 50, device)


def test_what_cannot_be_recorded_is_refused_where_it_was_asked_for():
    config = apply_changes(micro_config(), ["graphs=on"])
    with pytest.raises(ConfigError, match=r"graphs=on needs a CUDA device \(found cpu\)"):
        TrainStep(IPT(MICRO), config, DistInfo(), fake_degrade)
    assert TrainStep(IPT(MICRO), micro_config(), DistInfo(), fake_degrade).graphs is None
    cuda = DistInfo(device=torch.device("cuda", 0))
    assert unavailable_reason(config, cuda) is None
    for changed, info, reason in (
        (config, replace(cuda, world_size=2), "exchange between ranks"),
        (apply_changes(config, ["compile=true"]), cuda, "compile=true"),
        (apply_changes(config, ["compile=layers"]), cuda, "compile=layers"),
        (apply_changes(config, ["optimizer=apex"]), cuda, "optimizer=apex"),
    ):
        assert reason in unavailable_reason(changed, info)
