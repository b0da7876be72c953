"""accelerate(network, frozen=True): tails collapsed once, for inference."""

import copy

import pytest
import torch
from torch import nn

from bench.baselines.people_networks import EDSR, SwinIR
from ipt_fast import accelerate
from tests.acceleration.networks import CASES, run
from tests.acceleration.test_machinery import WAYS
from tests.ops.results import relative

TAILS = {name: case for name, case in CASES.items() if "DETR" not in name}


@pytest.fixture(params=TAILS)
def case(request):
    return TAILS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_output_keys_and_undo(case, dtype):
    network, args = case.network(dtype), case.args(dtype)
    wanted, keys = run(network, args), list(network.state_dict())
    modules = [type(m) for m in network.modules()]
    undo = accelerate(network, frozen=True)
    assert [path for path, _ in undo.report.swapped] == case.swapped
    assert list(network.state_dict()) == keys and len(list(network.modules())) == len(modules)
    assert relative(run(network, args), wanted) < (1e-5 if dtype == torch.float32 else 1e-12)
    undo()
    assert [type(m) for m in network.modules()] == modules
    network.train()(*args).sum().backward()
    assert torch.equal(run(network.eval(), args), wanted)


@pytest.mark.parametrize("way", ["deepcopy", "torch.save", "to", "compile", "export", "jit.trace"])
@pytest.mark.filterwarnings("ignore")
def test_it_stays_frozen_and_right(case, way):
    network, args = case.network(), case.args()
    wanted = run(network, args)
    accelerate(network, frozen=True)
    if way == "to":
        network, args = network.double(), tuple(x.double() for x in args)
    else:
        with torch.no_grad():
            network = WAYS[way](network, args)
    assert relative(run(network, args), wanted) < 1e-5


@pytest.mark.parametrize("make", [lambda: EDSR(2, 64), lambda: SwinIR(3, num_feat=64)])
def test_training_and_loading_are_refused(make):
    network, x = make().eval(), torch.rand(1, 3, 24, 24)
    undo = accelerate(network, frozen=True)
    network.train()
    with pytest.raises(RuntimeError, match="is frozen"):
        network(x)
    with torch.no_grad():
        network(x)
    with pytest.raises(RuntimeError, match="is frozen"):
        network.load_state_dict(network.state_dict())
    undo()
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    network.load_state_dict(network.state_dict())


def test_gradients_in_eval_mode_are_those_of_the_weights():
    network, x = EDSR(2, 64).eval(), torch.rand(1, 3, 24, 24)
    plain = copy.deepcopy(network)
    accelerate(network, frozen=True)
    for n in (network, plain):
        n(x).square().sum().backward()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        assert relative(a.grad, b.grad) < 1e-4


def test_weights_of_later_are_not_seen_until_it_is_done_again():
    network, x = EDSR(2, 64).eval(), torch.rand(1, 3, 24, 24)
    undo = accelerate(network, frozen=True)
    before = run(network, (x,))
    network.tail[1].weight.data.mul_(2)
    assert torch.equal(run(network, (x,)), before)
    undo()
    wanted = run(network, (x,))
    accelerate(network, frozen=True)
    assert relative(run(network, (x,)), wanted) < 1e-5


def test_what_is_accelerated_already_cannot_be_frozen():
    network = nn.Sequential(EDSR(), EDSR())
    undo = accelerate(network)
    with pytest.raises(ValueError, match="undo that first"):
        accelerate(network, frozen=True)
    undo()
    accelerate(network, frozen=True)
    assert not accelerate(network, frozen=True).report.swapped
