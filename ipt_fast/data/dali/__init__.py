"""The loader on NVIDIA DALI. Nothing outside this folder imports its insides, and DALI is imported on demand."""

import importlib
import importlib.util
from typing import Any

import torch

from ipt_fast.data.base import CropLoader
from ipt_fast.data.source import CropSource


def unavailable_reason() -> str | None:
    """Return None where DALI can be used, else the reason."""
    try:
        found = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        return 'DALI is not installed (pip install "ipt-fast[dali-cu12]" or "ipt-fast[dali-cu13]")'
    try:
        importlib.import_module("nvidia.dali")
    except Exception as error:  # whatever keeps it from loading (a missing library, a wrong numpy)
        return f"DALI is installed and does not load: {error}"
    return None


def open_loader(source: CropSource, rank: int, world_size: int, *, device: torch.device, **settings: Any) -> CropLoader:
    """Return the DALI loader, decoding on ``device``; ``settings`` are ``workers`` and ``prefetch``.

    Raises:
        ModuleNotFoundError: there is no DALI; see ``unavailable_reason``.
    """
    from ipt_fast.data.dali.loader import DaliLoader

    return DaliLoader(source, rank, world_size, device=device, **settings)
