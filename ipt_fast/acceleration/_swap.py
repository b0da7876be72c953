"""How a module is swapped in place: it gets a subclass of its own class, and nothing else of it changes.

So parameters, buffers, hooks, names, ``isinstance`` and the state dict stay what they are, and undoing is giving the
class back. A swapped module pickles as what it was; a deep copy of it stays swapped.
"""

import copy
import copyreg
from dataclasses import dataclass, field

from torch import nn

_CLASSES: dict[tuple[type, type], type] = {}


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


class Swapped:
    """First base of every class made by ``swap``."""

    _swapped_from: type

    def __reduce_ex__(self, protocol):
        return copyreg._reconstructor, (self._swapped_from, object, None), self.__dict__.copy()  # type: ignore[attr-defined]

    def __deepcopy__(self, memo):
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new


def swap(module: nn.Module, behaviour: type) -> None:
    """Give ``module`` the methods of ``behaviour``, a subclass of Swapped, before those of its class."""
    base = type(module)
    key = (behaviour, base)
    if key not in _CLASSES:
        _CLASSES[key] = type(f"Accelerated{base.__name__}", (behaviour, base), {"_swapped_from": base})
    module.__class__ = _CLASSES[key]


def unswap(module: nn.Module) -> None:
    """The inverse of ``swap``; nothing where the module is not swapped."""
    if isinstance(module, Swapped):
        module.__class__ = module._swapped_from


def original_class(module: nn.Module) -> type:
    """The class of a module, swapped or not."""
    return module._swapped_from if isinstance(module, Swapped) else type(module)
