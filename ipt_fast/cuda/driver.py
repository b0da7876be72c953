"""Load kernels and launch them on PyTorch's current stream, by ``cuda-core``."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ipt_fast.cuda.code import cubin, symbol
from ipt_fast.cuda.kernels import Kernel, arch_of

_WITHOUT_OPT_IN = 48 << 10  # bytes of shared memory a block


def launch(kernel: Kernel, device: torch.device, blocks: int, arguments: Sequence[Tensor | int | float | None]) -> None:
    """Launch a kernel with ``blocks`` blocks.

    Args:
        kernel: what to launch.
        device: the GPU of all tensors.
        blocks: of the grid, in x: up to 2^31 - 1.
        arguments: in the order of the source; tensors become pointers, None a null pointer, strides ``Stride``, other
            integers ``int``, floats ``float``.
    """
    from cuda.core import Device, LaunchConfig, Stream
    from cuda.core import launch as launch_kernel

    with torch.cuda.device(device):
        index = torch.cuda.current_device()
        Device(index).set_current()  # autograd's threads may have made no call yet that binds a context to them
        function = load(kernel, index)
        stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)
        config = LaunchConfig(grid=blocks, block=kernel.threads, shmem_size=kernel.shared)
        launch_kernel(stream, config, function, *map(_argument, arguments))


class Stride(int):
    """A stride in elements: ``long long`` in the kernels."""


def _argument(value: Tensor | int | float | None) -> Any:
    # cuda-core takes a Python integer for 8 bytes, an address for instance; ctypes says what it is not.
    if value is None:
        return 0
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, Stride):
        return ctypes.c_int64(value)
    return ctypes.c_int32(value) if isinstance(value, int) else ctypes.c_float(value)


@functools.cache
def load(kernel: Kernel, device: int) -> Any:
    """Return a kernel ready for launches on one GPU."""
    from cuda.bindings import driver
    from cuda.core import ObjectCode

    code = cubin(kernel.source, arch_of(torch.cuda.get_device_capability(device)))
    function = ObjectCode.from_cubin(code, name=kernel.name).get_kernel(symbol(code, kernel))
    if kernel.shared > _WITHOUT_OPT_IN:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (error,) = driver.cuKernelSetAttribute(attribute, kernel.shared, function.handle, driver.CUdevice(device))
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{kernel.name}: {kernel.shared} bytes of shared memory are refused ({error.name})")
    return function
