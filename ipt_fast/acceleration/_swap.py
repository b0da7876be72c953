"""How a module is swapped in place: its class becomes a subclass written in this package, and nothing else changes.

So parameters, buffers, hooks, names and the state dict stay what they are, pickle and deepcopy need nothing special,
and undoing is giving the class back. Only modules of exactly a class of torch.nn are swapped: a class of the
network's owner, with its methods and its own way to be pickled, is never touched.
"""

from dataclasses import dataclass, field

from torch import nn


@dataclass
class Report:
    """What ``accelerate`` did: paths of modules with what runs in their place, or with the reason why not."""

    swapped: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    already: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"swapped  {path}: {what}" for path, what in self.swapped]
        lines += [f"already  {path}" for path in self.already]
        lines += [f"refused  {path}: {reason}" for path, reason in self.refused]
        return "\n".join(lines) or "nothing to accelerate was found"


@dataclass
class Swapped:
    """One module with the class that it got, the one that it had, and the attributes that came with the new one."""

    module: nn.Module
    new: type
    old: type
    attributes: dict[str, object]

    @classmethod
    def swap(cls, module: nn.Module, new: type, **attributes: object) -> "Swapped":
        """Give ``module`` the class ``new``, a subclass of its own, and the attributes that ``new`` reads."""
        swapped = cls(module, new, type(module), attributes)
        module.__dict__.update(attributes)
        module.__class__ = new
        return swapped

    def undo(self) -> None:
        """Give the old class back; what a parametrization or FSDP derived from the new one is derived from the old."""
        self.module.__class__ = _rebased(type(self.module), self.new, self.old)
        for name in self.attributes:
            self.module.__dict__.pop(name, None)


def _rebased(kind: type, new: type, old: type) -> type:
    if kind is new:
        return old
    bases = tuple(_rebased(base, new, old) for base in kind.__bases__)
    if bases == kind.__bases__:
        return kind
    namespace = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(kind.__name__.replace(new.__name__, old.__name__), bases, namespace)
