"""Which parts of a network can run faster: one small function an architecture, and a list that others add to."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ipt_fast.acceleration._attention import EmbeddedAttention, reason_not_served
from ipt_fast.acceleration._hooks import reason_not_fusable
from ipt_fast.acceleration._source import Flags, follower
from ipt_fast.acceleration._tail import TailConv, TailSequential, TailShuffle, TailStart
from ipt_fast.ops.pixelshuffle_tail import unlike_plain

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLAIN_CLASS = {TailStart: nn.Conv2d, TailConv: nn.Conv2d, TailShuffle: nn.PixelShuffle, TailSequential: nn.Sequential}


@dataclass(frozen=True)
class LinearTail:
    """Parts that the module calls one after the other on features, with nothing between and nobody else looking.

    Attributes:
        parts: names below the module, in the order of the calls: convolution, PixelShuffle, ..., convolution, such as
            ("upsample.0", "upsample.1", "conv_last").
        flags: (module, attribute, value): this order holds while each attribute has its value.
    """

    parts: tuple[str, ...]
    flags: Flags = ()


@dataclass(frozen=True)
class Swap:
    """A part whose class becomes ``new``, a subclass of its class written in a module; ``what`` is for the report."""

    part: str
    new: type
    what: str


@dataclass(frozen=True)
class LeaveAlone:
    """A part that looks as if it could be accelerated, and the reason why it is not."""

    part: str
    reason: str


Finding = LinearTail | Swap | LeaveAlone
Match = Callable[[nn.Module], Iterable[Finding] | None]
_REGISTERED: dict[str, Match] = {}


def register_adapter(name: str, match: Match) -> None:
    """Add an architecture to what ``accelerate`` finds.

    ``match(module)`` is called with every module of a network, from the outside to the inside, before the adapters of
    this package, and changes nothing: it returns what it found, or None. What it may return, with names of parts below
    ``module`` ("" is ``module`` itself): ``LinearTail``, ``Swap`` and ``LeaveAlone``. It vouches for what it says of
    its class's forward; hooks, shared modules, parametrisations and convolutions that cannot be collapsed are looked
    for by ``accelerate``. For an architecture that calls ``self.last(self.shuffle(self.up(x)))``::

        register_adapter("MyNet", lambda m: [LinearTail(("up", "shuffle", "last"))] if isinstance(m, MyNet) else None)

    Args:
        name: of the architecture; a name that is there already is replaced.
        match: see above.

    Raises:
        TypeError: ``name`` is no string, or ``match`` cannot be called.
    """
    if not isinstance(name, str) or not callable(match):
        raise TypeError(
            f"register_adapter: needs a name and a function (got {type(name).__name__} and {type(match).__name__})"
        )
    _REGISTERED[name] = match


def adapters() -> dict[str, Match]:
    """Return all adapters by name, in the order in which they are asked."""
    own = {"SwinIR": parts_of_a_class, "EDT": edt, "EDSR": sequential, "DETR": attention}
    return {**_REGISTERED, **{name: match for name, match in own.items() if name not in _REGISTERED}}


def sequential(module: nn.Module) -> Iterator[Finding]:
    """EDSR, RCAN, IPT: Sequential(Upsampler, conv), and tails in any other Sequential."""
    if not is_plain_sequential(module):
        return
    named = list(leaves(module))
    runs = [(first, end) for first, end in find_runs([m for _, m in named]) if (end - first) % 2]
    for first, end in runs:
        yield LinearTail(tuple(name for name, _ in named[first:end]))
    served = {i for first, end in runs for i in range(first, end)}
    for i, (name, leaf) in enumerate(named):
        if isinstance(leaf, nn.PixelShuffle) and i not in served:
            yield LeaveAlone(name, _reason_no_tail(named, i))


def parts_of_a_class(module: nn.Module) -> Iterator[Finding]:
    """SwinIR, HAT and others of BasicSR: ``conv_last(upsample(x))`` in a forward that shows that order."""
    if isinstance(module, nn.Sequential) or not _has_forward(module):
        return
    for name, child in module._modules.items():
        if child is None or not is_plain_sequential(child):
            continue
        named = list(leaves(child, name))
        runs = [run for run in find_runs([m for _, m in named]) if run[1] == len(named) and (run[1] - run[0]) % 2 == 0]
        if not runs:
            continue
        found = follower(module, name) if "forward" not in module.__dict__ else "stands in a forward of its own"
        shuffle = named[-1][0]
        if isinstance(found, str):
            yield LeaveAlone(shuffle, found)
            continue
        last, flags = found
        conv = module._modules.get(last)
        reason = f"is a {type(conv).__name__}" if conv is None else reason_no_conv(conv)
        if reason:
            yield LeaveAlone(shuffle, f"{last} after it {reason}")
        else:
            yield LinearTail((*(n for n, _ in named[runs[0][0] :]), last), flags)


def edt(module: nn.Module) -> Iterator[Finding]:
    """EDT: ``tail_sr_x2`` and others are ModuleLists, run in order; the last two are Upsample and a convolution."""
    for name, tail in module._modules.items():
        if not name.startswith("tail_sr_x") or name.replace("tail", "head") not in module._modules:
            continue
        if not isinstance(tail, nn.ModuleList) or len(tail) < 2 or not is_plain_sequential(tail[-2]):
            continue
        parts = [*leaves(tail[-2], f"{name}.{len(tail) - 2}"), (f"{name}.{len(tail) - 1}", tail[-1])]
        if find_runs([m for _, m in parts]) == [(0, len(parts))]:
            yield LinearTail(tuple(n for n, _ in parts))


def attention(module: nn.Module) -> Iterator[Finding]:
    """DETR: nn.MultiheadAttention whose queries and keys have embeddings added."""
    if not isinstance(module, nn.MultiheadAttention):
        return
    if reason := reason_not_served(module):
        yield LeaveAlone("", reason)
        return
    but = "masks, q = k = v" + (" and training with dropout" if module.dropout else "")
    yield Swap(
        "", EmbeddedAttention, f"patch_attention where need_weights=False; its own forward otherwise, with {but}"
    )


def original_class(module: nn.Module) -> type:
    """Return the class of a module as it was before this package swapped it."""
    return _PLAIN_CLASS.get(type(module), type(module))


def _has_forward(module: nn.Module) -> bool:
    return getattr(type(module), "forward", nn.Module.forward) is not nn.Module.forward


def is_plain_sequential(module: nn.Module) -> bool:
    """Return whether calling it is calling its children in order."""
    kind = original_class(module)
    return (
        isinstance(module, nn.Sequential)
        and getattr(kind, "forward", None) is nn.Sequential.forward
        and kind.__call__ is nn.Module.__call__
        and reason_not_fusable(module) is None
    )


def leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield what a Sequential calls, one after the other and as often as it does, through nested Sequentials."""
    for name, child in module._modules.items():
        where = f"{path}.{name}" if path else name
        if child is not None and is_plain_sequential(child):
            yield from leaves(child, where)
        elif child is not None:
            yield where, child


def reason_no_conv(module: nn.Module) -> str | None:
    """Return why a module is no convolution that can be collapsed, or None."""
    kind = original_class(module)
    if kind is not nn.Conv2d:
        if isinstance(module, nn.Conv2d):
            parametrized = " (its weight is parametrised)" if hasattr(module, "parametrizations") else ""
            return f"is a {kind.__name__}, not a plain Conv2d{parametrized}"
        return f"is a {kind.__name__}"
    assert isinstance(module, nn.Conv2d)
    if reason := reason_not_fusable(module):
        normed = hasattr(module, "weight_g") or hasattr(module, "weight_orig")
        return f"{reason} (weight or spectral norm)" if normed else reason
    if any(t is not None and t.dtype not in _FLOATS for t in (module.weight, module.bias)):
        return f"has weights of {module.weight.dtype}"
    return unlike_plain(module)


def _is_shuffle(module: nn.Module) -> bool:
    return original_class(module) is nn.PixelShuffle and reason_not_fusable(module) is None


def find_runs(modules: list[nn.Module]) -> list[tuple[int, int]]:
    """Return first and end of conv, PixelShuffle, ..., conv, each as long as it can be; at the end without its conv."""
    runs, i = [], 0
    while i < len(modules):
        j = i
        while j + 1 < len(modules) and reason_no_conv(modules[j]) is None and _is_shuffle(modules[j + 1]):
            j += 2
        closed = i < j < len(modules) and reason_no_conv(modules[j]) is None
        if closed or (j > i and j == len(modules)):
            runs.append((i, j + closed))
        i = max(j, i + 1)
    return runs


def _reason_no_tail(named: list[tuple[str, nn.Module]], place: int) -> str:
    if reason := reason_not_fusable(named[place][1]):
        return reason
    for i, word in ((place - 1, "before"), (place + 1, "after")):
        if not 0 <= i < len(named):
            return f"nothing stands {word} it in its Sequential"
        if reason := reason_no_conv(named[i][1]):
            return f"{named[i][0]} {word} it {reason}"
    after, where = named[place + 1 :], named[place + 1][0]
    following = f": {after[1][0]} follows it" if len(after) > 1 else ""
    return f"the chain goes on after {where} with what is no plain part of a tail{following}"
