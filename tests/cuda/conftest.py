"""A GPU that is not there: NVIDIA's library and PyTorch's view of a device, replaced where this project calls them."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ipt_fast.cuda import code, driver
from ipt_fast.cuda.kernels import KERNELS

STREAM = 0x57


@dataclass
class Machine:
    """What the library was asked for. ``kernel`` runs what is launched: it gets the launch."""

    arch: int = 70
    launches: list[SimpleNamespace] = field(default_factory=list)
    attributes: list[tuple[Any, ...]] = field(default_factory=list)
    loaded: list[bytes] = field(default_factory=list)
    inside: list[torch.device] = field(default_factory=list)
    bound: bool = False
    kernel: Any = None


def symbol_of(kernel):
    length, arguments = len(kernel.name), f"ILi{kernel.d}E" + ("Li4E" if kernel.archs == (75,) else "Li8E")
    return f"_ZN8ipt_fast{length}{kernel.name}{arguments}EvPK6__half"


def _module(monkeypatch, name, **content):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend a GPU of ``arch``, on which tensors of the CPU lie; the wheel's machine code is made up."""
    found = Machine()

    class ObjectCode:
        @staticmethod
        def from_cubin(content, *, name=""):
            found.loaded.append(content)
            return SimpleNamespace(get_kernel=lambda symbol: SimpleNamespace(symbol=symbol, handle=f"handle {symbol}"))

    def launch(stream, config, function, *arguments):
        assert found.inside and found.bound, "the device is not current, or the thread has no context"
        one = SimpleNamespace(stream=stream, config=config, symbol=function.symbol, arguments=arguments)
        found.launches.append(one)
        if found.kernel is not None:
            found.kernel(one)

    def set_attribute(attribute, value, handle, device):
        found.attributes.append((attribute, value, handle, device))
        return (0,)

    def bind():
        found.bound = True

    @contextmanager
    def current(device):
        found.inside.append(torch.device(device))
        yield
        found.inside.pop()
        found.bound = False

    core = _module(
        monkeypatch,
        "cuda.core",
        Device=lambda number: SimpleNamespace(set_current=bind),
        LaunchConfig=lambda **options: SimpleNamespace(**options),
        Stream=SimpleNamespace(from_handle=lambda handle: handle),
        ObjectCode=ObjectCode,
        launch=launch,
    )
    bindings = SimpleNamespace(
        CUfunction_attribute=SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"),
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
        CUdevice=lambda number: number,
        cuKernelSetAttribute=set_attribute,
    )
    _module(monkeypatch, "cuda", core=core, __path__=[])
    _module(monkeypatch, "cuda.bindings", driver=bindings, __path__=[])
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: divmod(found.arch, 10))
    monkeypatch.setattr("ipt_fast.ops._registry.capability", lambda device: divmod(found.arch, 10))
    for arch in (70, 75, 80, 90):
        for source in code.sources():
            names = " ".join(symbol_of(k) for k in KERNELS if k.source.stem == source.stem and arch in k.archs)
            (tmp_path / code.packaged_name(source, arch)).write_text(f"code of sm_{arch}: {names}")
    monkeypatch.setattr(code, "PACKAGED", tmp_path)
    for cached in (code.unavailable_reason, driver.load):
        cached.cache_clear()
    yield found
    for cached in (code.unavailable_reason, driver.load):
        cached.cache_clear()
