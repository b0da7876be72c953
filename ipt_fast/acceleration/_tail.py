"""What runs in place of a linear tail: convolution, PixelShuffle, ..., convolution with nothing between.

Two forms occur. Where the whole tail stands in one ``nn.Sequential`` (EDSR, RCAN, IPT), that Sequential becomes a
``TailSequential``. Where a class of the network's owner calls the parts (SwinIR: ``conv_last(upsample(x))``; EDT: a
ModuleList), the parts themselves are swapped: the first convolution computes the whole tail, and those after it let
the image pass, which they tell by its number of channels.

A tail is run as one op only while everything about it is as it was when it was swapped. A part that was replaced,
parametrised, sharded or given a hook later, a tracer, or an input that the op does not serve: then every part does
what it did before.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ipt_fast.acceleration._hooks import reason_not_fusable
from ipt_fast.ops._common import any_requires_grad, autocast_dtype
from ipt_fast.ops.pixelshuffle_tail import pixelshuffle_tail, unlike_plain

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLAIN = (Tensor, nn.Parameter)


def traced(x: object) -> bool:
    """Return whether a tracer follows the call, which is to see the network's own operations."""
    return isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing() or torch.compiler.is_exporting()


def negated(x: Tensor) -> bool:
    """Return whether a tensor is a negative view, whose memory holds other numbers; compilers cannot ask."""
    return not torch.compiler.is_compiling() and x.is_neg()


@dataclass(frozen=True)
class Layout:
    """The children of a container at the time of the swap, by name; of a Sequential these are all of them."""

    container: nn.Module
    children: tuple[tuple[str, nn.Module], ...]
    whole: bool

    @property
    def unchanged(self) -> bool:
        """Whether the container still has these children."""
        now = self.container._modules
        return all(now.get(name) is child for name, child in self.children) and (
            not self.whole or len(now) == len(self.children)
        )


@dataclass(eq=False)
class Tail:
    """One tail; the modules are referred to, never registered a second time.

    Attributes:
        members: convolution, PixelShuffle, ..., convolution, in order.
        layouts: where they stand. inner: the containers that a hook could be put on to see what is between.
        flags: (module, attribute, value) that the forward of the network's owner decides by.
        collapsed: a one-element tuple of a module with fixed weights, or empty.
        kinds: the classes of members and containers while they are accelerated.
    """

    members: tuple[nn.Module, ...]
    layouts: tuple[Layout, ...]
    inner: tuple[nn.Module, ...]
    flags: tuple[tuple[nn.Module, str, Any], ...] = ()
    collapsed: tuple[nn.Module, ...] = ()
    kinds: tuple[type, ...] = ()

    @property
    def convs(self) -> tuple[nn.Conv2d, ...]:
        """The convolutions in order."""
        return self.members[::2]  # type: ignore[return-value]

    @property
    def scales(self) -> list[int]:
        """The factor of each PixelShuffle in order."""
        return [m.upscale_factor for m in self.members[1::2]]  # type: ignore[misc]

    def pairs(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return weight and bias of each convolution, as they are now."""
        return [(conv.weight, conv.bias) for conv in self.convs]

    @property
    def unchanged(self) -> bool:
        """Whether calling the members one after the other is still the whole of what the network does here."""
        watched = (*self.members, *self.inner)
        return (
            not torch.nn.modules.module._has_any_global_hook()
            and all(type(m) is kind for m, kind in zip(watched, self.kinds, strict=True))
            and all(reason_not_fusable(m) is None for m in watched)
            and all(unlike_plain(conv) is None for conv in self.convs)
            and all(layout.unchanged for layout in self.layouts)
            and all(getattr(owner, name, None) == value for owner, name, value in self.flags)
        )

    def serves(self, x: object) -> bool:
        """Return whether the op takes ``x`` and gives what the members would give."""
        if type(x) not in _PLAIN or x.dim() != 4 or 0 in x.shape or x.dtype not in _FLOATS:  # type: ignore[attr-defined]
            return False
        assert isinstance(x, Tensor)
        pairs = self.pairs()
        tensors = [t for pair in pairs for t in pair if t is not None]
        if x.device.type not in ("cpu", "cuda") or x.shape[1] != pairs[0][0].shape[1] or negated(x):
            return False
        if any(type(t) not in _PLAIN or t.device != x.device or negated(t) for t in tensors):
            return False
        cast = autocast_dtype(x.device.type) is not None
        return all(t.dtype == x.dtype or (cast and t.dtype in _FLOATS) for t in tensors)

    def check_frozen(self, training: bool) -> None:
        """Raise RuntimeError where weights are to be trained that a frozen tail would not use."""
        if self.collapsed and training and any_requires_grad([t for pair in self.pairs() for t in pair]):
            raise RuntimeError(
                "accelerate: the tail of this network is frozen (frozen=True), and its weights want gradients in "
                "training mode; undo the acceleration to train, or call network.eval() or torch.no_grad()"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the image; gradients of the weights never go through the frozen kernels."""
        pairs = self.pairs()
        if self.collapsed and not any_requires_grad([t for pair in pairs for t in pair]):
            return self.collapsed[0](x)
        return pixelshuffle_tail(x, pairs, self.scales)


class _FrozenState:
    """What a module that holds tails adds to nn.Module: frozen kernels move with it, and are not loaded behind."""

    def _own_tails(self) -> list[Tail]:
        raise NotImplementedError

    def _apply(self, fn, recurse=True):
        for tail in self._own_tails():
            for collapsed in tail.collapsed:
                collapsed._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def _load_from_state_dict(self, *args, **kwargs):
        if any(tail.collapsed for tail in self._own_tails()):
            raise RuntimeError(
                "accelerate: the tail of this network is frozen (frozen=True) and would not see loaded weights; "
                "undo the acceleration, load, then accelerate again"
            )
        return super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]


class TailSequential(_FrozenState, nn.Sequential):
    """A Sequential that runs its linear tails as one op each.

    ``_steps`` are the modules that it calls in order, nested Sequentials around a tail opened, with each tail as one
    ``Tail`` in place of its members.
    """

    _steps: tuple[nn.Module | Tail, ...] = ()

    def _own_tails(self) -> list[Tail]:
        return [step for step in self._steps if isinstance(step, Tail)]

    def __getitem__(self, index):
        if isinstance(index, slice):  # what is cut out of an accelerated Sequential is a plain one
            return nn.Sequential(*list(self._modules.values())[index])
        return super().__getitem__(index)

    def forward(self, x):
        """As in nn.Sequential."""
        tails = self._own_tails()
        for tail in tails:
            tail.check_frozen(self.training)
        # A shallow copy, as DataParallel makes them, refers to the parts of the module that it was copied from.
        if traced(x) or not all(tail.layouts[0].container is self and tail.unchanged for tail in tails):
            return super().forward(x)
        for step in self._steps or self._modules.values():
            if not isinstance(step, Tail) or step.serves(x):
                x = step(x)
            else:
                for module in step.members:
                    x = module(x)
        return x


class TailStart(_FrozenState, nn.Conv2d):
    """The first convolution of a tail whose parts are called by code: it computes the whole tail."""

    _tail: Tail | None = None

    def _own_tails(self) -> list[Tail]:
        return [] if self._tail is None else [self._tail]

    def forward(self, x):
        """Return the image, or what the convolution alone gives where the tail is not what it was."""
        tail = self._tail
        if tail is not None:
            tail.check_frozen(self.training)
            # Not so for a shallow copy, which refers to the members of the module that it was copied from.
            if tail.members[0] is self and not traced(x) and tail.unchanged and tail.serves(x):
                return tail(x)
        return super().forward(x)


class TailConv(nn.Conv2d):
    """A later convolution of such a tail: what has the channels of the image passes."""

    _image_channels = 0

    def forward(self, x):
        """As in nn.Conv2d for features; an image of the whole tail passes."""
        return x if _is_image(x, self._image_channels) else super().forward(x)


class TailShuffle(nn.PixelShuffle):
    """A PixelShuffle of such a tail: what has the channels of the image passes."""

    _image_channels = 0

    def forward(self, x):
        """As in nn.PixelShuffle for features; an image of the whole tail passes."""
        return x if _is_image(x, self._image_channels) else super().forward(x)


def _is_image(x: Any, channels: int) -> bool:
    return not traced(x) and x.dim() == 4 and x.shape[1] == channels
