"""What runs in place of a linear tail: convolution, PixelShuffle, ..., convolution with nothing between.

Two forms occur. Where the whole tail stands in one ``nn.Sequential`` (EDSR, RCAN, IPT), that Sequential becomes a
``TailSequential``. Where a class of the network's owner calls the parts (SwinIR: ``conv_last(upsample(x))``; EDT: a
ModuleList), the parts themselves are swapped: the first convolution computes the whole tail, and those after it let
the image pass, which they tell by its number of channels. Their tail is an attribute of the module that calls them
too, and goes with copies of that module: a part that is copied without it is the plain part that it was.

A tail is run as one op only while everything about it is as it was when it was swapped. A part that was replaced,
parametrised, sharded or given a hook later, a tracer, or an input that the op does not serve: then every part does
what it did before.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ipt_fast.acceleration._plain import Swapped, plain_tensors, reason_not_fusable, traced
from ipt_fast.acceleration._source import Flags
from ipt_fast.ops._common import any_requires_grad
from ipt_fast.ops.pixelshuffle_tail import pixelshuffle_tail, unlike_plain


@dataclass(eq=False)
class Tail:
    """One tail; the modules are referred to, never registered a second time.

    Attributes:
        holder: the swapped module that runs the tail. members: convolution, PixelShuffle, ..., convolution, in order.
        orders: the Sequentials that call them, each with its children at the time of the swap.
        flags: (module, attribute, value) that the network finds the members by, or that its forward decides by.
        kinds: members, and the containers that a hook could be put on to see what is between, with their classes.
        collapsed: a module with fixed weights, or None.
    """

    holder: nn.Module
    members: tuple[nn.Module, ...]
    orders: tuple[tuple[nn.Sequential, list[nn.Module]], ...]
    flags: Flags
    kinds: tuple[tuple[nn.Module, type], ...] = ()
    collapsed: nn.Module | None = None

    def __setstate__(self, state):
        """Swap the parts that were copied along, which are plain so far."""
        self.__dict__.update(state)
        for module, kind in self.kinds:
            if issubclass(kind, Part) and issubclass(kind, type(module)):
                module.__class__ = kind
                module.__dict__["_tails"] = Link([self])

    @property
    def scales(self) -> list[int]:
        """The factor of each PixelShuffle in order."""
        return [m.upscale_factor for m in self.members[1::2]]  # type: ignore[misc]

    def pairs(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return weight and bias of each convolution, as they are now."""
        return [(conv.weight, conv.bias) for conv in self.members[::2]]  # type: ignore[misc]

    @property
    def unchanged(self) -> bool:
        """Whether calling the members one after the other is still the whole of what the network does here."""
        return (
            not torch.nn.modules.module._has_any_global_hook()
            and all(type(m) is kind and reason_not_fusable(m) is None for m, kind in self.kinds)
            and all(unlike_plain(conv) is None for conv in self.members[::2])  # type: ignore[arg-type]
            and all(list(container) == children for container, children in self.orders)
            and all(getattr(owner, name, None) == value for owner, name, value in self.flags)
        )

    def serves(self, x: Any) -> bool:
        """Return whether the op takes ``x`` and gives what the members would give."""
        pairs = self.pairs()
        return plain_tensors([x], [t for pair in pairs for t in pair], dims=4) and x.shape[1] == pairs[0][0].shape[1]

    def trained(self) -> bool:
        """Return whether gradients of the weights are wanted."""
        return any_requires_grad([t for pair in self.pairs() for t in pair])

    def __call__(self, x: Tensor) -> Tensor:
        """Return the image; gradients of the weights never go through the frozen kernels."""
        if self.collapsed is not None and not self.trained():
            return self.collapsed(x)
        return pixelshuffle_tail(x, self.pairs(), self.scales)


class _Holder(Swapped):
    """A module that runs tails; frozen kernels move with it, and are not loaded behind."""

    _tails: tuple[Tail, ...] = ()

    def _frozen(self) -> list[Any]:
        return [tail for tail in self._tails if tail.collapsed is not None]

    def _ready(self, x: object) -> bool:
        """Return whether the tails are what they were, and raise where a frozen one would be trained."""
        if self.training and any(tail.trained() for tail in self._frozen()):
            raise RuntimeError(
                "accelerate: the tail of this network is frozen (frozen=True), and its weights want gradients in "
                "training mode; undo the acceleration to train, or call network.eval() or torch.no_grad()"
            )
        if traced(x) or not self._tails:
            return False
        # A shallow copy, as DataParallel makes them, refers to the parts of the module that it was copied from.
        return all(tail.holder is self and tail.unchanged for tail in self._tails)

    def _apply(self, fn, recurse=True):
        for tail in self._frozen():
            tail.collapsed._apply(fn)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        if self._frozen():
            raise RuntimeError(
                "accelerate: the tail of this network is frozen (frozen=True) and would not see loaded weights; "
                "undo the acceleration, load, then accelerate again"
            )
        return super()._load_from_state_dict(*args, **kwargs)


class TailSequential(_Holder, nn.Sequential):
    """A Sequential that runs its linear tails as one op each.

    ``_steps`` are the modules that it calls in order, nested Sequentials around a tail opened, with each tail as one
    ``Tail`` in place of its members.
    """

    _steps: tuple[nn.Module | Tail, ...] = ()

    def __getitem__(self, index):
        if isinstance(index, slice):  # what is cut out of an accelerated Sequential is a plain one
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def forward(self, x):
        """As in nn.Sequential."""
        if not self._ready(x):
            return super().forward(x)
        for step in self._steps:
            for part in step.members if isinstance(step, Tail) and not step.serves(x) else (step,):
                x = part(x)
        return x


class Link(tuple):
    """The tail of a part; it stays behind where the part is copied or pickled."""

    def __reduce__(self):
        return tuple, ()


class Part(Swapped):
    """A part of a tail whose parts are called by code: as its class for features; an image of the whole tail passes."""

    _tails: tuple[Tail, ...] = ()

    def forward(self, x):
        """Return the image as it is, or what the part alone gives."""
        image = self._tails and not traced(x) and x.dim() == 4 and x.shape[1] == self._tails[0].members[-1].out_channels
        return x if image else super().forward(x)

    def __reduce_ex__(self, protocol):
        if type(self) not in (TailStart, TailConv, TailShuffle):  # a class that somebody made of it later
            return super().__reduce_ex__(protocol)
        state = {name: value for name, value in vars(self).items() if name != "_tails"}
        return object.__new__, type(self).__bases__[-1:], state


class TailStart(Part, _Holder, nn.Conv2d):
    """The first convolution of such a tail: it computes the whole."""

    def forward(self, x):
        """Return the image, or what the convolution alone gives where the tail is not what it was."""
        if self._ready(x) and self._tails[0].serves(x):
            return self._tails[0](x)
        return nn.Conv2d.forward(self, x)


class TailConv(Part, nn.Conv2d):
    """A later convolution of such a tail."""


class TailShuffle(Part, nn.PixelShuffle):
    """A PixelShuffle of such a tail."""
