"""Which backend each op takes on this machine, and why the others are not taken: ``python -m ipt_fast.info``."""

import importlib
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import ipt_fast
from ipt_fast.cli.tables import print_table
from ipt_fast.ops._registry import choose

OPS = ("patch_attention", "patch_contrastive_loss", "pixelshuffle_tail", "degrade")
_PACKAGES = ("torch", "triton", "xformers", "simplejpeg", "nvidia-dali-cuda130", "nvidia-dali-cuda120")
_COLUMNS = ("op", "backend", "on this machine")


def devices() -> list[torch.device]:
    """The CPU, and every CUDA device."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]


def backend_rows(device: torch.device) -> list[tuple[str, str, str]]:
    """(op, backend, verdict) for every backend of every op on ``device``.

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


def device_title(device: torch.device) -> str:
    """The device with what decides about its backends."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{device}: {torch.cuda.get_device_name(device)}, capability {major}.{minor}"
    return f"cpu: {platform.machine()}, {torch.get_num_threads()} threads, {_vector_units()}"


def version_rows() -> list[tuple[str, str]]:
    """(package, version) of what decides about speed."""
    rows = [("ipt-fast", ipt_fast.__version__), ("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    return [*rows, ("CUDA of torch", torch.version.cuda or "none"), ("NVIDIA driver", _driver())]


def _vector_units() -> str:
    names = {"bf16": "_is_avx512_bf16_supported", "amx": "_is_amx_tile_supported"}
    found = [name for name, probe in names.items() if getattr(torch.cpu, probe, bool)()]
    return f"{torch.backends.cpu.get_cpu_capability()} {' '.join(found)}".strip()


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    if not path.exists():
        return "none"
    words = path.read_text().split("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables. Exit code 0."""
    print_table("versions", ("package", "version"), version_rows())
    if choice := os.environ.get("IPT_FAST_IMPL"):
        print(f"IPT_FAST_IMPL={choice} decides below where an op has a backend of that name")
    for device in devices():
        print_table(device_title(device), _COLUMNS, backend_rows(device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
