"""Questions that several ops ask of a call, of its arguments and of the machine."""

import numbers
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_dense(op: str, name: str, x: Any, needed: str) -> None:
    """Raise TypeError unless ``x`` is a dense tensor, which a message calls ``needed``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be {needed} (got {type(x).__name__})")
    if x.layout is not torch.strided or x.is_nested:
        raise TypeError(f"{op}: {name} must be {needed}, dense (got a {'nested' if x.is_nested else x.layout} one)")


def check_tensor(op: str, name: str, x: Any, dtypes: Sequence[torch.dtype] = FLOATS, shape: str = "") -> None:
    """Raise TypeError unless ``x`` is a dense tensor of one of ``dtypes``; ``shape`` is what a message asks for."""
    check_dense(op, name, x, f"a tensor {shape}".strip())
    if x.dtype not in dtypes:
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        listed = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        raise TypeError(f"{op}: {name} must be {listed} (got {x.dtype})")


def check_type(op: str, name: str, x: Any, kind: Any, needed: str) -> None:
    """Raise TypeError unless ``x`` is of that kind, which a message calls ``needed``."""
    if not isinstance(x, kind):
        raise TypeError(f"{op}: {name} must be {needed} (got {_shown(x)})")


def check_integer(op: str, name: str, x: Any, least: int) -> None:
    """Raise unless ``x`` is a whole number of at least ``least``."""
    if not isinstance(x, (int, torch.SymInt)) or isinstance(x, bool):
        raise TypeError(f"{op}: {name} must be a whole number (got {_shown(x)})")
    if x < least:
        raise ValueError(f"{op}: {name} must be at least {least} (got {x})")


def check_number(op: str, name: str, x: Any, least: float = -sys.float_info.max) -> float:
    """Return ``x``; raise unless it is a finite number. A tensor is none, because its gradient would be dropped."""
    if not isinstance(x, numbers.Real) or isinstance(x, bool):
        raise TypeError(f"{op}: {name} must be a number without gradient (got {_shown(x)})")
    size: Any = abs(x)
    if not size <= sys.float_info.max:  # not math.isfinite, which the whole numbers beyond make raise
        raise ValueError(f"{op}: {name} must be finite (got {x})")
    if x < least:
        raise ValueError(f"{op}: {name} must be at least {least} (got {x})")
    return float(x)


def check_choice(op: str, name: str, x: Any, known: Sequence[str]) -> None:
    """Raise unless ``x`` is one of the names that are ``known``."""
    check_type(op, name, x, str, f"one of {', '.join(known)}")
    if x not in known:
        raise ValueError(f'{op}: {name}="{x}" is unknown; use one of {", ".join(known)}')


def _shown(x: Any) -> str:
    return repr(x)[:80] if isinstance(x, (int, float, str)) else type(x).__name__


def check_like(op: str, name: str, x: Tensor, model: str, y: Tensor, any_dtype: bool = False) -> None:
    """Raise TypeError unless ``x`` has the device and, without ``any_dtype``, the dtype of y, the ``model``."""
    if x.device != y.device or not (any_dtype or x.dtype == y.dtype):
        raise TypeError(
            f"{op}: {name} must have the dtype and device of {model}, {y.dtype} on {y.device} "
            f"(got {x.dtype} on {x.device}); cast it, or run under torch.autocast"
        )


def forward_mode() -> bool:
    """Return whether a forward-mode derivative is being taken; tensors do not tell."""
    return forward_ad._current_level >= 0


def any_requires_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether autograd may record a call with these tensors; under ``torch.func`` they do not tell."""
    if forward_mode() or torch._C._are_functorch_transforms_active():
        return True
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


def autocast_off(x: Tensor) -> AbstractContextManager:
    """Return a context without autocast; none at all where it is off, which exporters understand best."""
    return torch.autocast(x.device.type, enabled=False) if autocast_dtype(x.device.type) else nullcontext()


def cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return t in that dtype, None for None."""
    return None if t is None else t.to(dtype)


def has_fast_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32 (AVX512-BF16 or AMX)."""
    return _has("_is_avx512_bf16_supported") or has_amx()


def has_amx() -> bool:
    """Return whether this CPU has tile instructions."""
    return _has("_is_amx_tile_supported")


def _has(probe: str) -> bool:
    return getattr(torch.cpu, probe, bool)()
