"""What holds of every Triton kernel: it is launched on the device of its tensors, and repeats bit by bit."""

import importlib
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")

from triton.runtime.jit import KernelInterface

import ipt_fast.kernels
from tests.kernels.calls import calls

REPEATS = 100
MODULES = sorted(path.stem for path in Path(next(iter(ipt_fast.kernels.__path__))).glob("*.py"))


class Watched:
    """A kernel that notes each launch: its name, and whether a device guard was on."""

    def __init__(self, name, kernel, guards, launches):
        self.name, self.kernel, self.guards, self.launches = name, kernel, guards, launches

    def __getitem__(self, grid):
        self.launches.append((self.name, bool(self.guards)))
        return self.kernel[grid]


@pytest.fixture
def launches(monkeypatch):
    """Return what launches: (module.kernel, whether it was under ``torch.cuda.device_of`` a tensor)."""
    guards, launches = [], []
    own = torch.cuda.device_of

    @contextmanager
    def device_of(tensor):
        guards.append(tensor.device)
        with own(tensor):
            yield
        guards.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for module in [importlib.import_module(f"ipt_fast.kernels.{name}") for name in MODULES]:
        for kernel, made in list(vars(module).items()):
            if not (kernel.endswith("_kernel") and isinstance(made, KernelInterface)):
                continue
            monkeypatch.setattr(module, kernel, Watched(f"{made.fn.__module__}.{kernel}", made, guards, launches))
    return launches


def test_every_kernel_is_launched_under_a_device_guard(device, launches):
    # Without one a launch goes to the current device, which need not be the tensors'.
    modules = [importlib.import_module(f"ipt_fast.kernels.{name}") for name in MODULES]
    every = {kernel.name for module in modules for kernel in vars(module).values() if isinstance(kernel, Watched)}
    for call in calls(device, large=False).values():
        call()
    assert {name for name, _ in launches} == every
    assert {name for name, guarded in launches if not guarded} == set()


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(calls(torch.device("cpu"), large=False)))
def test_a_hundred_runs_give_the_same_bits(device, name):
    call = calls(device, large=True)[name]
    first = call()
    for repeat in range(1, REPEATS):
        for place, (a, b) in enumerate(zip(first, call(), strict=True)):
            assert torch.equal(a, b), f"result {place} of run {repeat} differs from the first run's"
