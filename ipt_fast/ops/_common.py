"""Questions that several ops ask of a call and of the machine."""

from collections.abc import Iterable

import torch
from torch import Tensor


def any_requires_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether autograd would record a call with these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of autocast on that kind of device, None where autocast is off."""
    # Other kinds (meta) have none, and would raise. torch 2.10 cannot trace torch.amp.is_autocast_available.
    if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of GEMMs with ``x``: autocast's where it is on, otherwise that of ``x``; float64 stays."""
    dtype = autocast_dtype(x.device.type)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def has_fast_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32 (AVX512-BF16 or AMX)."""
    return _has("_is_avx512_bf16_supported") or has_amx()


def has_amx() -> bool:
    """Return whether this CPU has tile instructions."""
    return _has("_is_amx_tile_supported")


def _has(probe: str) -> bool:
    return getattr(torch.cpu, probe, bool)()
