"""ipt-fast: the Image Processing Transformer (Chen et al., CVPR 2021), pre-training to restoration.

The public names load on first use, so that ``from ipt_fast.ops import patch_attention`` needs torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "IPT": "ipt_fast.model",
    "IPTConfig": "ipt_fast.model",
    "TASKS": "ipt_fast.tasks",
    "load_checkpoint": "ipt_fast.checkpoint",
    "restore": "ipt_fast.inference",
    "prepare_for_inference": "ipt_fast.inference",
    "accelerate": "ipt_fast.acceleration",
}

__all__ = [
    "IPT",
    "TASKS",
    "IPTConfig",
    "__version__",
    "accelerate",
    "load_checkpoint",
    "ops",
    "prepare_for_inference",
    "restore",
]

if TYPE_CHECKING:
    from ipt_fast import ops
    from ipt_fast.acceleration import accelerate
    from ipt_fast.checkpoint import load_checkpoint
    from ipt_fast.inference import prepare_for_inference, restore
    from ipt_fast.model import IPT, IPTConfig
    from ipt_fast.tasks import TASKS


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("ipt_fast.ops")
    if name not in _HOMES:
        raise AttributeError(f"module 'ipt_fast' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
