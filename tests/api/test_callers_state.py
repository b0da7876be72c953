"""A caller's object is his: no call, whether it succeeds or fails, changes what was passed in or the process."""

import warnings

import pytest
import torch

from tests.api.network_calls import NETWORK_CALLS
from tests.api.other_calls import OTHER_CALLS
from tests.api.public import public_functions
from tests.api.state import process_state, state_of
from tests.api.world import World

FUNCTIONS = public_functions()
CALLS = NETWORK_CALLS | OTHER_CALLS
# What a function is there to change.
DOCUMENTED = {
    ("accelerate", "network"), ("degrade", "generator"), ("restore_generators", "torch's generator"),
    ("restore_generators", "numpy's generator"), ("restore_generators", "python's generator"),
    ("IPT", "torch's generator"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def unusual():
    """Set what is global to what it is not by default, so that a call that resets it is found out."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("error", message="nobody says this")
        yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("function", sorted(CALLS))
def test_a_call_changes_nothing_of_its_callers(function, world, unusual, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ipt_fast.acceleration._adapters._REGISTERED", {})
    call = FUNCTIONS[function]
    _use_up(call(**CALLS[function](world)))  # libraries that are imported late have their say
    failing = [(name, object()) for name in CALLS[function](world)]
    for name, value in [(None, None), *failing]:
        arguments = CALLS[function](world)
        if name is not None:
            arguments[name] = value
        before, process = state_of(arguments), process_state()
        try:
            _use_up(call(**arguments))
        except Exception:
            assert name is not None
        after, process_after = state_of(arguments), process_state()
        changed = [key for key in before if before[key] != after[key]]
        changed += [key for key in process if process[key] != process_after[key]]
        assert [key for key in changed if (function, key) not in DOCUMENTED] == [], (
            f"with another {name}" if name else ""
        )


def _use_up(result):
    if hasattr(result, "__next__"):
        next(result, None)
    if hasattr(result, "stats"):
        result.close()


def test_the_state_of_a_network_holds_all_that_could_be_changed():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = state_of(network)
    changes = {
        "mode": lambda: network[1].eval(),
        "weight": lambda: network[0].weight.data.add_(1),
        "gradient": lambda: setattr(network[0].weight, "grad", torch.ones(2, 2)),
        "flag": lambda: network[0].bias.requires_grad_(False),
        "hook": lambda: network[0].register_forward_hook(lambda *a: None),
        "buffer": lambda: network[1].running_mean.add_(1),
        "attribute": lambda: setattr(network, "cache", 1),
    }
    for change in changes.values():
        change()
        after = state_of(network)
        assert after != before
        before = after
