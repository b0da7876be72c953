"""``ipt-fast info``: which backend each op takes on this machine, and why the others are not taken."""

import argparse
import importlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

from ipt_fast import __version__, ops
from ipt_fast.cli.tables import print_table
from ipt_fast.gpus import GPUS
from ipt_fast.ops._common import has_amx, has_fast_bf16
from ipt_fast.ops._registry import assume, choose

EXAMPLE = """example:
  ipt-fast info                           what an ordinary call takes
  IPT_FAST_IMPL=eager ipt-fast info       what it takes where the variable binds it
  ipt-fast info --for v100 h100           what each op would take on those, wherever this runs"""
OPS = tuple(name for name in ops.__all__ if find_spec(f"ipt_fast.ops.{name}"))
PACKAGES = ("torch", "triton", "cuda-core", "xformers", "simplejpeg", "nvidia-dali-cuda130", "nvidia-dali-cuda120")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--for", dest="gpus", nargs="+", choices=GPUS, metavar="GPU", help=f"plan for {', '.join(GPUS)}"
    )


def run(args: argparse.Namespace) -> int:
    """Print versions, then for each device the backends of each op; or plans for other GPUs."""
    for gpu in args.gpus or ():
        capability = "capability {}.{}".format(*GPUS[gpu].capability)
        taken, refused = plan_rows(gpu)
        columns = ("op", *(str(dtype).removeprefix("torch.") for dtype in DTYPES))
        print_table(f"{gpu}, {capability}: what is taken (what impl= can ask for)", columns, taken)
        print_table(f"{gpu}: what cannot be had", ("op", "backend", "why"), refused)
        print(f'{gpu}: impl="sdpa" has PyTorch try {", ".join(sdpa_order(GPUS[gpu].capability))}')
    if args.gpus:
        print("as if every optional package were installed; shapes count too: see the ops' descriptions")
        return 0
    print_table("versions", ("package", "version"), version_rows())
    if choice := os.environ.get("IPT_FAST_IMPL"):
        print(f"IPT_FAST_IMPL={choice} decides below where an op has a backend of that name")
    for device in [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]:
        print_table(_title(device), ("op", "backend", "on this machine"), backend_rows(device))
        if device.type == "cuda":
            print(f'{device}: impl="sdpa" of patch_attention is PyTorch\'s kernel "{sdpa_kernel_of(device)}"')
    return 0


def backend_rows(device: torch.device) -> list[tuple[str, str, str]]:
    """Return (op, backend, verdict) for every backend of every op on ``device``.

    The verdict is "taken" for the backend that an ordinary call gets, "works" for others that can be asked for, and
    otherwise the reason why not. ``IPT_FAST_IMPL`` counts. A call may still differ: dtype and shape count too.
    """
    rows = []
    for op in OPS:
        status = importlib.import_module(f"ipt_fast.ops.{op}").backend_status(device)
        try:
            taken = choose(op, None, status)
        except (RuntimeError, ValueError) as error:
            rows.append((op, "none", str(error).removeprefix(f"{op}: ")))
            taken = ""
        for name, reason in status.items():
            verdict = "taken" if name == taken else f'works; ask with impl="{name}"' if reason is None else reason
            rows.append((op, name, verdict))
    return rows


def plan_rows(gpu: str) -> tuple[list[tuple[str, ...]], list[tuple[str, str, str]]]:
    """Return what the ops would take on a GPU of ``GPUS`` with every optional package installed.

    Returns:
        (op, one cell a dtype of ``DTYPES``: the backend taken and, in brackets, those that can be asked for); and
        (op, backend, reason) of those that no dtype can have.
    """
    taken, refused = [], []
    with assume(GPUS[gpu].capability):
        for op in OPS:
            status = importlib.import_module(f"ipt_fast.ops.{op}").backend_status
            by_dtype = [status("cuda", dtype) for dtype in DTYPES]
            taken.append((op, *(_cell(op, reasons) for reasons in by_dtype)))
            refused += [(op, name, why) for name, why in by_dtype[0].items() if all(r[name] for r in by_dtype) and why]
    return taken, refused


def sdpa_order(capability: tuple[int, int]) -> list[str]:
    """Return the kernels of ``scaled_dot_product_attention`` in 16 bits, in the order in which PyTorch tries them.

    Left as PyTorch has it (2.10 to 2.14, ``sdp_utils.cpp``): it puts cuDNN first itself, and not before a fault of
    cuDNN with lengths that are no multiple of 128 was mended in 9.15.1; torch 2.10 brings an older one. An order set
    here would be one of the whole process.
    """
    first = ["cudnn (from 9.15.1 on)"] if capability in ((9, 0), (10, 0)) else []
    return [*first, *(["flash"] if capability >= (8, 0) else []), "efficient", "math"]


def sdpa_kernel_of(device: torch.device) -> str:
    """Return the kernel that PyTorch takes on ``device`` for the attention of IPT in training: d = 48, 16 bits."""
    dtype = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported(False) else torch.float16
    q = torch.empty(1, 12, 256, 48, dtype=dtype, device=device, requires_grad=True)  # [B, H, N, d]
    return SDPBackend(torch._fused_sdp_choice(q, q, q)).name.lower().removesuffix("_attention")


def _cell(op: str, reasons: dict[str, str | None]) -> str:
    try:
        name = choose(op, None, reasons)
    except (RuntimeError, ValueError):  # IPT_FAST_IMPL asks for what cannot be had
        return "none"
    others = [other for other, why in reasons.items() if why is None and other != name]
    return f"{name} ({', '.join(others)})" if others else name


def version_rows(packages: Sequence[str] = PACKAGES) -> list[tuple[str, str]]:
    """Return (package, version) of what decides about speed."""
    rows = [("ipt-fast", __version__), ("python", platform.python_version())]
    for package in packages:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    return [*rows, ("CUDA of torch", torch.version.cuda or "none"), ("NVIDIA driver", _driver())]


def _title(device: torch.device) -> str:
    """Return the device with what decides about its backends."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{device}: {torch.cuda.get_device_name(device)}, capability {major}.{minor}"
    units = [torch.backends.cpu.get_cpu_capability(), "bf16" * has_fast_bf16(), "amx" * has_amx()]
    return f"cpu: {platform.machine()}, {torch.get_num_threads()} threads, {' '.join(filter(None, units))}"


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    if not path.exists():
        return "none"
    words = path.read_text().split("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")
