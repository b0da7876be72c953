"""Restoring a photo through the product's own code: a line for each operation that a device would be given."""

import argparse
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from triton.runtime.jit import JITFunction

from bench.count.predict import host_seconds, seconds_by_kind
from bench.count.pretend import HostFunctions, pretend_cuda
from bench.count.rates import DEVICES, Device
from bench.count.trace import Counted, Recorder, materialise
from ipt_fast.cli.tables import markdown_table, print_table
from ipt_fast.inference import prepare_for_inference, restore
from ipt_fast.model import IPT, PRESETS

_SIZE = 321, 481  # of a photo of CBSD68
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
_COLUMNS = (
    "device", "dtype", "windows at once", "launches", "casts", "waits", "GB", "TFLOP", "device ms", "host ms"
)  # fmt: skip


def report(args: argparse.Namespace) -> int:
    """Print the table of ``ipt-fast count --restore``; write it where asked."""
    rows = []
    for name in args.device:
        for batch_size in args.batch_size or [128]:
            device = DEVICES[name]
            counted = trace_restore(args.preset, args.task, _SIZE, device, _DTYPES[args.restore], batch_size)
            gpu, ops = sum(seconds_by_kind(counted, device).values()), counted.operations
            rows.append([
                device.name, args.restore, str(batch_size), f"{counted.launches:,}", str(len(counted.of("cast"))),
                str(len(counted.waits)), f"{sum(op.bytes for op in ops) / 1e9:.2f}",
                f"{sum(op.flops for op in ops) / 1e12:.2f}", f"{1e3 * gpu:.1f}",
                f"{1e3 * host_seconds(counted, device):.1f}",
            ])  # fmt: skip
    title = f"restoring a photo of {_SIZE[1]}x{_SIZE[0]}, {args.preset} {args.task}; times are estimates"
    print_table(title, _COLUMNS, rows, _COLUMNS[2:])
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        command = f"ipt-fast count --restore {args.restore} --preset {args.preset} --task {args.task}"
        text = f"# A photo, counted\n\n`{command}`, {_SIZE[1]} x {_SIZE[0]} pixels. {_NOTE}\n\n"
        (args.out / "restore.md").write_text(text + markdown_table(_COLUMNS, rows, _COLUMNS[2:]))
    return 0


_NOTE = (
    "Nothing was measured on a GPU; times are estimates from the rates of `bench/count/rates.py`. Everything from the "
    "photo's uint8 in the host's memory to its result there. The one wait is for that result."
)


def trace_restore(
    preset: str,
    task: str,
    size: tuple[int, int],
    device: Device,
    dtype: torch.dtype,
    batch_size: int = 128,
    photos: int | None = None,
) -> Counted:
    """Count restoring a photo of ``size`` (height, width), uint8 in the host's memory, by a prepared network.

    Args:
        preset: of the network.
        task: that it restores.
        size: of the photo.
        device: a GPU, pretended.
        dtype: of the prepared network.
        batch_size: windows at once.
        photos: that many of them as one list; None is one photo alone.
    """
    assert device.capability is not None
    with torch.device("meta"):
        model = IPT(PRESETS[preset])
    host = HostFunctions()
    with pretend_cuda(device.capability, device.memory), host:
        materialise(model, "cuda")
        with mock.patch.object(nn.Module, "_apply", _apply):
            network = prepare_for_inference(model, task, dtype)
        recorder = Recorder("cuda")
        kernels = mock.patch.object(JITFunction, "__getitem__", recorder.kernel)
        numpy = mock.patch.object(FakeTensor, "numpy", lambda x: np.empty(x.shape, np.uint8))
        holds_data = mock.patch.object(FakeTensor, "is_meta", property(lambda x: False))
        host.begin_step()
        stream = mock.patch("torch.cuda.current_stream", return_value=host)
        with kernels, numpy, holds_data, stream, recorder:
            photo = np.zeros((*size, 3), np.uint8)
            restore(network, photo if photos is None else [photo] * photos, task, batch_size=batch_size)
    return Counted(tuple(recorder.operations), tuple(host.waits))


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Do what ``nn.Module._apply`` does, which swaps tensors that hold no data and cannot."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else change(buffer)
    return module
