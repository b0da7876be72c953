"""Layers compiled one by one: the steps of eager layers, few compilations, the same names, hooks that are called."""

import functools
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.step import TrainStep
from ipt_fast.model import IPT
from ipt_fast.tasks import TASKS, get_task
from tests.engine.fakes import MICRO, fake_degrade, micro_config

SIX = replace(MICRO, tasks=TASKS, num_layers=2)


@pytest.fixture
def counter(monkeypatch):
    """Count compilations, by a backend that needs no C++ compiler."""
    counter = CompileCounterWithBackend("eager")
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    yield counter
    torch.compiler.reset()


def make_step(*changes):
    torch.manual_seed(0)
    return TrainStep(IPT(SIX), micro_config(*changes), DistInfo(), fake_degrade)


def take(step, i, task):
    draw = torch.Generator().manual_seed(i)
    side = 12 * get_task(task).scale
    x = torch.rand(4, 3, 12, 12, generator=draw) * 255
    target = torch.rand(4, 3, side, side, generator=draw) * 255
    return step(x, target, task, 1e-6).read()  # weights hardly move, so that rounding stays rounding


def test_six_tasks_take_three_compilations_and_the_steps_of_eager_layers(counter):
    counter.backend = "aot_eager"
    compiled, eager = make_step("compile=layers"), make_step("recompute=off")
    start = {name: t.clone() for name, t in eager.model.state_dict().items()}
    for i in range(2 * len(TASKS)):
        ours, wanted = (take(step, i, TASKS[i % len(TASKS)]) for step in (compiled, eager))
        assert (ours.total, ours.grad_norm) == pytest.approx((wanted.total, wanted.grad_norm), rel=1e-4)
    assert counter.frame_count == 3  # encoder, first decoder layer (its tokens are the memory), other decoder layers
    ours, wanted = compiled.state_dict()["model"], eager.state_dict()["model"]
    assert list(ours) == list(wanted)
    moved = torch.cat([(wanted[k] - start[k]).flatten() for k in start]).norm()
    assert torch.cat([(wanted[k] - ours[k]).flatten() for k in start]).norm() < 0.02 * moved
    eager.load_state_dict(compiled.state_dict())  # a run goes on without compiled layers
    assert take(eager, 99, "sr2").total == pytest.approx(take(compiled, 99, "sr2").total, rel=1e-4)


def test_hooks_on_layers_and_their_parts_are_called_whenever_they_came(counter):
    step, called = make_step("compile=layers", "precision=bf16"), []
    layers = step.model.body.encoder.layers
    layers[1].register_forward_hook(lambda *_: called.append("layer"))
    layers[1].self_attn.register_forward_hook(lambda *_: called.append("part"))
    take(step, 0, "sr2")
    assert called == ["part", "layer"]
    layers[0].register_forward_hook(lambda *_: called.append("layer, later"))
    layers[0].ffn.register_forward_hook(lambda *_: called.append("part, later"))
    layers[0].register_full_backward_hook(lambda *_: called.append("backward"))
    called.clear()
    take(step, 1, "sr3")
    assert called == ["part, later", "layer, later", "part", "layer", "backward"]
