"""Which parts of a network can run faster: one small function an architecture, and a list that others add to."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from ipt_fast.acceleration._plain import is_plain_sequential, reason_no_conv, reason_not_plain
from ipt_fast.acceleration._source import Flags, follower
from ipt_fast.arguments import checked


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


Finding = LinearTail | tuple[str, str]  # or the name of a part that is left alone, and the reason
Calls = Sequence[tuple[str, nn.Module | None]]  # modules by name, called one after the other
Match = Callable[[nn.Module], Iterable[Finding] | None]
_REGISTERED: dict[str, Match] = {}


@checked
def register_adapter(name: str, match: Match) -> None:
    """Add an architecture to what ``accelerate`` finds.

    ``match(module)`` is called with every module of a network, from the outside to the inside, before the adapters of
    this package, and changes nothing: it returns what it found, or None. What it may return, with names of parts below
    ``module`` ("" is ``module`` itself): ``LinearTail``, and (part, reason) for what is to be left alone. It vouches
    for what it says of its class's forward; hooks, shared modules, parametrisations and convolutions that cannot be
    collapsed are looked for by ``accelerate``. For an architecture that calls
    ``self.last(self.shuffle(self.up(x)))``::

        register_adapter("MyNet", lambda m: [LinearTail(("up", "shuffle", "last"))] if isinstance(m, MyNet) else None)

    Args:
        name: of the architecture; a name that is there already is replaced.
        match: see above.

    Raises:
        TypeError: ``name`` is no string, or ``match`` cannot be called.
    """
    _REGISTERED[name] = match


def adapters() -> dict[str, Match]:
    """Return all adapters by name, in the order in which they are asked."""
    own = {"SwinIR": _parts_of_a_class, "EDT": _edt, "EDSR": _sequential}
    return {**_REGISTERED, **{name: match for name, match in own.items() if name not in _REGISTERED}}


def _sequential(module: nn.Module) -> Iterator[Finding]:
    """EDSR, RCAN, IPT: Sequential(Upsampler, conv), and tails in any other Sequential."""
    if is_plain_sequential(module):
        yield from _tails(list(_leaves(module)))


def _parts_of_a_class(module: nn.Module) -> Iterator[Finding]:
    """SwinIR, HAT and others of BasicSR: ``conv_last(upsample(x))`` in a forward that shows that order."""
    if isinstance(module, nn.Sequential) or type(module).forward is nn.Module.forward:
        return
    for name, child in module.named_children():
        named = list(_leaves(child, name)) if is_plain_sequential(child) else []
        if not (run := re.search("(cs)+$", _kinds(named))):
            continue
        found = follower(module, name)
        if isinstance(found, str):
            yield named[-1][0], found
        else:
            last, flags = found
            yield from _tails([*named[run.start() :], (last, module._modules.get(last))], flags)


def _edt(module: nn.Module) -> Iterator[Finding]:
    """EDT: ``tail_sr_x2`` and others are ModuleLists, run in order; the last two are Upsample and a convolution."""
    for name, tail in module.named_children():
        if not name.startswith("tail_sr_x") or name.replace("tail", "head") not in module._modules:
            continue
        if isinstance(tail, nn.ModuleList) and len(tail) > 1 and is_plain_sequential(tail[-2]):
            end = len(tail) - 1
            yield from _tails([*_leaves(tail[-2], f"{name}.{end - 1}"), (f"{name}.{end}", tail[-1])])


def _leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield what a Sequential calls, one after the other and as often as it does, through nested Sequentials."""
    for name, child in module._modules.items():
        where = f"{path}.{name}" if path else name
        if child is not None and is_plain_sequential(child):
            yield from _leaves(child, where)
        elif child is not None:
            yield where, child


def _tails(named: Calls, flags: Flags = ()) -> Iterator[Finding]:
    """Yield the tails among modules called in order, and the reason for each PixelShuffle that is in none."""
    served = set[int]()
    for run in re.finditer("c(sc)+(?!s)", _kinds(named)):
        yield LinearTail(tuple(name for name, _ in named[run.start() : run.end()]), flags)
        served.update(range(*run.span()))
    for i, (name, module) in enumerate(named):
        if isinstance(module, nn.PixelShuffle) and i not in served:
            yield name, _reason_no_tail(named, i)


def _kinds(named: Calls) -> str:
    """Return a letter for each module: c convolution, s PixelShuffle, - what no tail has."""

    def kind(module: nn.Module | None) -> str:
        return "s" if reason_not_plain(module, nn.PixelShuffle) is None else "-" if reason_no_conv(module) else "c"

    return "".join(kind(module) for _, module in named)


def _reason_no_tail(named: Calls, place: int) -> str:
    if reason := reason_not_plain(named[place][1], nn.PixelShuffle):
        return reason
    for i, word in ((place - 1, "before"), (place + 1, "after")):
        if not 0 <= i < len(named):
            return f"nothing stands {word} it in its Sequential"
        if reason := reason_no_conv(named[i][1]):
            return f"{named[i][0]} {word} it {reason}"
    after = [name for name, _ in named[place + 1 :]]
    following = f": {after[1]} follows it" if len(after) > 1 else ""
    return f"the chain goes on after {after[0]} with what is no plain part of a tail{following}"
