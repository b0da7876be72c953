"""A CUDA device that is not there: fake tensors that the product takes for CUDA ones, under any build of torch.

A fake tensor reports its device to Python alone; to C++ it is a meta tensor with the keys of CUDA, for a build without
CUDA refuses to differentiate anything that lies there.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch._dynamo  # it copies signatures when it is imported, so before one of them is replaced
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from ipt_fast.ops._registry import assume

_PROCESSORS = {(7, 0): 80, (8, 0): 108, (9, 0): 132}  # multiprocessors of V100, A100 and H100 (SXM)
_READS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.nonzero, torch.nonzero, Tensor.__bool__, Tensor.__float__}
_make_subclass = Tensor._make_subclass


def _made(cls: type, data: Tensor, requires_grad: bool = False, **options: Any) -> Tensor:
    options.pop("dispatch_device", None)
    return _make_subclass(cls, data, requires_grad, **options)


class _FakeCUDA(FakeTensorMode):
    """What C++ makes beside a tensor, as in the backward, it makes where it takes it to lie: on meta."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and kwargs.get("device") == torch.device("meta"):
            kwargs = {**kwargs, "device": torch.device("cuda", 0)}
        return super().dispatch(func, types, args, kwargs)


class HostFunctions(TorchFunctionMode):
    """What makes the host wait for the device, or copies from the host: named in ``waits``."""

    def __init__(self) -> None:
        super().__init__()
        self.begin_step()

    def synchronize(self) -> None:
        """Note that the host waits for all that it gave the device."""
        self.waits.append("synchronize")

    def begin_step(self) -> None:
        """Forget what was before."""
        self.waits: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            device = kwargs.get("device") or (args[0].device if function is Tensor.new_tensor else "cpu")
            if torch.device(device).type == "cuda":
                self.waits.append(f"{function.__name__} from the host's memory")
                data = args[1] if function is Tensor.new_tensor else args[0]
                return torch.empty(np.shape(data), dtype=kwargs.get("dtype") or torch.float32, device="cuda")
        if function is Tensor.to and args[0].device.type == "cpu":
            target = next((x for x in (*args[1:], *kwargs.values()) if isinstance(x, (str, torch.device))), None)
            if target is not None and torch.device(target).type == "cuda":
                if not kwargs.get("non_blocking"):  # the loader's batches are pinned
                    self.waits.append("copy from pageable memory")
                return torch.empty_like(args[0], device="cuda")
        if function is Tensor.pin_memory:
            return args[0]
        if function is torch.empty and kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        if function in _READS and args[0].device.type == "cuda":
            self.waits.append(f"{function.__name__} reads from the device")
        return function(*args, **kwargs)


@contextmanager
def pretend_cuda(capability: tuple[int, int], memory: int) -> Iterator[None]:
    """Let the product find a CUDA device of that capability and that many bytes; tensors made inside hold no data."""
    answers = {
        "is_available": lambda: True, "is_bf16_supported": lambda *a, **k: capability >= (8, 0),
        "current_device": lambda: 0, "device_count": lambda: 1, "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: SimpleNamespace(
            total_memory=memory, multi_processor_count=_PROCESSORS[capability]
        ),
        "mem_get_info": lambda device=None: (memory, memory),
        "Event": lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None),
    }  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(assume(capability))  # no matter which packages are installed here
        for name, answer in answers.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", answer))
        # PyTorch 2.10 would make a real tensor there before the first fake one.
        stack.enter_context(mock.patch("torch._subclasses.fake_tensor.init_gpu_context"))
        # Adam asks whether a graph is being recorded; the names are of PyTorch 2.10 and of later ones.
        for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
            stack.enter_context(mock.patch.object(torch.optim.Optimizer, name, return_value=None, create=True))
        stack.enter_context(mock.patch.object(Tensor, "_make_subclass", _made))
        stack.enter_context(mock.patch.object(FakeTensor, "is_cuda", property(lambda x: x.device.type == "cuda")))
        # The norm of the gradients is one call for all, for the types and devices that PyTorch lists.
        foreach = "torch.utils._foreach_utils."
        stack.enter_context(mock.patch(f"{foreach}_foreach_supported_types", [FakeTensor, nn.Parameter]))
        stack.enter_context(
            mock.patch(f"{foreach}_get_foreach_kernels_supported_devices", return_value=["cuda", "meta"])
        )
        stack.enter_context(_FakeCUDA(allow_non_fake_inputs=True))
        yield
