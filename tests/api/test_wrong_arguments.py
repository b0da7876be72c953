"""Every argument of every public function, given every wrong kind: a result, or one sentence that names it."""

import warnings

import pytest

from ipt_fast.acceleration import register_adapter
from tests.api.network_calls import NETWORK_CALLS
from tests.api.other_calls import OTHER_CALLS
from tests.api.public import public_functions
from tests.api.world import World
from tests.api.wrong import fault_of, wrong_values

FUNCTIONS = public_functions()
CALLS = NETWORK_CALLS | OTHER_CALLS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def test_every_public_function_has_a_valid_call():
    assert CALLS.keys() == FUNCTIONS.keys()


@pytest.fixture(autouse=True)
def _no_adapter_stays():
    """Take back what was registered as the tests' adapter, which may be anything that can be called."""
    yield
    register_adapter("none of the tests'", lambda module: None)


@pytest.mark.parametrize("function", sorted(CALLS))
def test_wrong_arguments_are_named(function, world, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    call, faults = FUNCTIONS[function], []
    _run(call, CALLS[function](world))  # the valid one
    for name, valid in CALLS[function](world).items():
        for value in wrong_values(valid):
            arguments = {**CALLS[function](world), name: value}
            try:
                _run(call, arguments)
            except Exception as error:
                if fault := fault_of(error, name, value):
                    faults.append(f"{name}={_shown(value)}: {fault}")
    assert not faults, "\n".join(faults)


def _run(call, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = call(**arguments)
        if hasattr(result, "__next__"):
            next(result, None)
        if hasattr(result, "stats"):
            result.close()


def _shown(value):
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else repr(value)[:60]
