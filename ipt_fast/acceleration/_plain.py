"""What an op may run in place of a module: plain modules that nobody listens to, called with plain tensors."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ipt_fast.ops._common import FLOATS, autocast_dtype
from ipt_fast.ops.pixelshuffle_tail import unlike_plain

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Swapped(nn.Module):
    """A module that runs an op in place of what its class computes."""

    def __prepare_scriptable__(self):
        raise RuntimeError("accelerate: torch.jit.script cannot read an accelerated network; call undo() first")


def reason_not_fusable(module: nn.Module) -> str | None:
    """Return why a module has to be called as it is, whatever its class computes, or None."""
    for name in _HOOKS:
        if getattr(module, name, None):
            return f"has {name.strip('_').replace('_', ' ')}"
    return "has a forward of its own" if "forward" in module.__dict__ else None


def reason_not_plain(module: Any, kind: type[nn.Module]) -> str | None:
    """Return why a module is none of exactly the class ``kind`` that an op may run, or None."""
    if type(module) is not kind:
        parametrized = " (its weight is parametrised)" if hasattr(module, "parametrizations") else ""
        return f"is a {type(module).__name__}, not a plain {kind.__name__}{parametrized}"
    return reason_not_fusable(module)


def reason_no_conv(module: Any) -> str | None:
    """Return why a module is no convolution that can be collapsed, or None."""
    if reason := reason_not_plain(module, nn.Conv2d):
        normed = hasattr(module, "weight_g") or hasattr(module, "weight_orig")
        return f"{reason} (weight or spectral norm)" if normed else reason
    if any(t is not None and t.dtype not in FLOATS for t in (module.weight, module.bias)):
        return f"has weights of {module.weight.dtype}"
    return unlike_plain(module)


def is_plain_sequential(module: Any) -> bool:
    """Return whether calling it is calling its children in order."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and type(module).__call__ is nn.Module.__call__
        and reason_not_fusable(module) is None
    )


def traced(x: object) -> bool:
    """Return whether a tracer follows the call, which is to see the network's own operations."""
    return isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing() or torch.compiler.is_exporting()


def plain_tensors(inputs: Sequence[Any], weights: Sequence[Tensor | None], dims: int) -> bool:
    """Return whether an op gives for these what the modules would give: inputs of ``dims`` dimensions, of one dtype."""
    x, present = inputs[0], [w for w in weights if w is not None]
    if any(type(t) not in (Tensor, nn.Parameter) or t.is_nested or _negated(t) for t in (*inputs, *present)):
        return False
    if any(t.dim() != dims or 0 in t.shape or t.dtype != x.dtype for t in inputs) or x.dtype not in FLOATS:
        return False
    if x.device.type not in ("cpu", "cuda") or any(t.device != x.device for t in (*inputs, *present)):
        return False
    cast = autocast_dtype(x.device.type) is not None
    return all(w.dtype == x.dtype or (cast and w.dtype in FLOATS) for w in present)


def _negated(x: Tensor) -> bool:
    # The memory of a negative view holds other numbers; compilers cannot ask.
    return not torch.compiler.is_compiling() and x.is_neg()
