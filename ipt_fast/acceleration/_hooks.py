"""Modules that have to be called as they are: hooks listen to them, or somebody has changed what they do."""

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def reason_not_fusable(module: nn.Module) -> str | None:
    """Return why a module has to be called as it is, whatever its class computes, or None."""
    for name in _HOOKS:
        if getattr(module, name, None):
            return f"has {name.strip('_').replace('_', ' ')}"
    if "forward" in module.__dict__:
        return "has a forward of its own"
    return None
