"""What a caller owns: the arguments that he passes, and the state of his process."""

import logging
import os
import random
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

_HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs"))]


def process_state() -> dict[str, Any]:
    """Return what is global, in values that can be compared."""
    loggers = [logging.root, *(logging.getLogger(name) for name in ("ipt_fast", "PIL", "torch", "torch.onnx"))]
    return {
        "torch's generator": torch.get_rng_state().tolist(),
        "numpy's generator": str(np.random.get_state()),
        "python's generator": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "matmul precision": (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "torch's threads": torch.get_num_threads(),
        "warning filters": [f for f in warnings.filters if f[2].__module__ == "builtins"],
        "signal handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "logging": [(x.level, x.propagate, x.disabled, list(x.handlers)) for x in loggers]
        + [logging.root.manager.disable],
        "working folder": os.getcwd(),
        "environment": dict(os.environ),
        "Pillow": (Image.MAX_IMAGE_PIXELS,),
        "threads": sorted(t.name for t in threading.enumerate() if not t.daemon),
    }


def state_of(value: Any) -> Any:
    """Return all of an argument that a call could change, in values that can be compared."""
    if isinstance(value, nn.Module):
        parts = dict(value.named_modules(remove_duplicate=False))
        tensors = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        kinds = {
            name: (type(m), m.training, sorted(vars(m)), *(len(getattr(m, h)) for h in _HOOKS))
            for name, m in parts.items()
        }
        return kinds, {name: state_of(t) for name, t in tensors.items()}
    if isinstance(value, Tensor):
        grad = None if value.grad is None else value.grad.tolist()
        return value.dtype, value.device, value.stride(), value.requires_grad, grad, value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    if isinstance(value, Image.Image):
        return value.mode, value.size, value.tobytes()
    if isinstance(value, dict):
        return {key: state_of(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [state_of(part) for part in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: state_of(getattr(value, name)) for name in value.__dataclass_fields__}
    return value if isinstance(value, (str, int, float, bool, Path, type(None))) else id(value)
