"""``accelerate``: ask every adapter about every module, check what they found, swap it, and write the report.

A module is swapped in place: its class becomes a subclass written in this package, with its tail as an attribute. So
parameters, buffers, hooks, names and the state dict stay what they are, and undoing is giving the class back. Only
modules of exactly a class of torch.nn are swapped: a class of the network's owner, with its methods and its own way to
be pickled, is never touched.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ipt_fast.acceleration._adapters import Finding, LinearTail, adapters
from ipt_fast.acceleration._attention import EmbeddedAttention, reason_not_served
from ipt_fast.acceleration._plain import reason_no_conv, reason_not_fusable, reason_not_plain
from ipt_fast.acceleration._tail import Link, Tail, TailConv, TailSequential, TailShuffle, TailStart
from ipt_fast.arguments import checked
from ipt_fast.ops.pixelshuffle_tail import collapse_tail


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


class Acceleration:
    """What ``accelerate`` returns: call it to undo; ``report`` lists what was swapped and what not, and why."""

    def __init__(self, undo: contextlib.ExitStack, report: Report):
        self._undo, self.report = undo, report

    def __call__(self) -> None:
        """Give every module that this call of ``accelerate`` swapped its class back; a second time does nothing."""
        self._undo.close()

    def __repr__(self) -> str:
        return f"Acceleration of {len(self.report.swapped)} parts; call it to undo\n{self.report}"


@checked
def accelerate(network: nn.Module, *, frozen: bool = False) -> Acceleration:
    """Swap what this package has a faster equal for, in place.

    Found are linear pixelshuffle tails (convolution, PixelShuffle, ..., convolution with nothing between, as in EDSR,
    RCAN, SwinIR, HAT, EDT and IPT), which become ``pixelshuffle_tail``, and ``nn.MultiheadAttention``, which becomes
    ``patch_attention`` where it is called with ``need_weights=False`` and embeddings added to queries and keys, as in
    DETR. Other architectures are added by ``register_adapter``.

    Modules keep their parameters, buffers, names, device, dtype and mode: only the class of some convolutions,
    PixelShuffles, Sequentials and attentions of torch.nn changes, to a subclass of it. So optimizers, checkpoints,
    ``isinstance``, pickle and copies work as before. Weights are taken as they are at each call. A part that is
    replaced, parametrised or given a hook later is honoured: the network then runs as it did. Tracers
    (``torch.jit.trace``, ``torch.fx``, ``torch.export``) see the network's own operations; ``torch.jit.script`` needs
    an ``undo()`` first.

    Where code calls the parts of a tail, as SwinIR does ``conv_last(upsample(x))``, the first part computes the image
    and the later ones let it pass. So ``network.upsample(x)``, called from outside, gives the image too; a copy of
    ``network.upsample`` alone gives the features.

    Args:
        network: any module; swapped in place. Modules that are swapped already are left alone.
        frozen: collapse the tails once, with the weights as they are now, for inference: later changes of the weights
            are not seen. Calls that want gradients of the weights raise in training mode, and compose the weights
            anew in eval mode; ``load_state_dict`` raises.

    Returns:
        An ``Acceleration``: call it to undo; its ``report`` has ``swapped`` and ``refused``, lists of (path, what or
        why), and ``already``.

    Raises:
        TypeError: no ``nn.Module``, or a scripted one, whose forward cannot change; ``frozen`` is no bool.
        ValueError: ``frozen=True`` for a network whose tails are accelerated already; an adapter names a part that is
            not there.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"accelerate: network must not be scripted (got {type(network).__name__})")
    modules = [(p, m) for p, m in network.named_modules() if not isinstance(m, torch.jit.ScriptModule)]
    before = [tail for _, m in modules if isinstance(m, TailSequential | TailStart) for tail in m._tails]
    if frozen and any(tail.collapsed is None for tail in before):
        raise ValueError("accelerate: frozen=True, but tails of this network are accelerated already; undo that first")
    with contextlib.ExitStack() as undo:
        work = _Work(network, frozen, undo, decided={id(m) for tail in before for m in tail.members})
        for path, module in modules:
            if isinstance(module, EmbeddedAttention) or any(module is tail.members[0] for tail in before):
                work.report.already.append(path)
                work.decided.add(id(module))
            for name, match in adapters().items():
                work.look_at(name, path, module, list(match(module) or ()))
            if isinstance(module, nn.MultiheadAttention) and id(module) not in work.decided:
                work.attention(path, module)
        for path, module in modules:
            if isinstance(module, nn.PixelShuffle) and id(module) not in work.decided:
                work.report.refused.append((path, work.reason_not_followed(path)))
        return Acceleration(undo.pop_all(), work.report)


class _Work:
    """One call of ``accelerate``; ``decided`` are the modules that the report has spoken of, by id."""

    def __init__(self, network: nn.Module, frozen: bool, undo: contextlib.ExitStack, decided: set[int]):
        self.network, self.frozen, self.undo, self.decided = network, frozen, undo, decided
        self.report = Report()
        self.places = Counter(id(m) for _, m in network.named_modules(remove_duplicate=False))

    def attention(self, path: str, module: nn.MultiheadAttention) -> None:
        if reason := reason_not_served(module):
            self.report.refused.append((path, reason))
            return
        self._swap(module, EmbeddedAttention)
        but = "masks, q = k = v" + (" and training with dropout" if module.dropout else "")
        what = f"patch_attention where need_weights=False; its own forward otherwise, with {but}"
        self.report.swapped.append((path, what))

    def look_at(self, name: str, path: str, module: nn.Module, findings: list[Finding]) -> None:
        tails: list[Tail] = []
        for finding in findings:
            parts = finding.parts if isinstance(finding, LinearTail) else finding[:1]
            try:
                names = [name for part in parts for name in itertools.accumulate(part.split("."), "{}.{}".format)]
                along: dict[str, Any] = {name: module.get_submodule(name) for name in names}  # and what is around them
            except AttributeError as error:
                raise ValueError(f"accelerate: adapter {name!r} names a part that is not there: {error}") from None
            members = {id(along[part]) for part in parts}
            if members & self.decided:
                continue
            self.decided |= members
            paths = [".".join(filter(None, (path, part))) for part in parts]
            if not isinstance(finding, LinearTail):
                self.report.refused.append((paths[0], finding[1]))
            elif reason := self._reason_no_tail(module, finding.parts, along):
                self.report.refused.append((paths[min(1, len(paths) - 1)], reason))
            else:
                tails.append(self._tail(path, module, finding, along))
                frozen = "frozen, " if self.frozen else ""
                scales = "x".join(map(str, tails[-1].scales))
                what = f"x{scales} tail up to {paths[-1]} as one convolution, {frozen}{name}"
                self.report.swapped.append((paths[0], what))
        if tails and type(module) is nn.Sequential:
            self._swap(module, TailSequential, _tails=tuple(tails), _steps=tuple(_steps(module, tails)))
        for tail in tails:
            tail.kinds = tuple((m, type(m)) for m, _ in tail.kinds)

    def _swap(self, module: nn.Module, new: type, **attributes: object) -> None:
        """Give ``module`` the class ``new``, a subclass of its own, and the attributes that ``new`` reads."""
        self.undo.callback(_give_back, module, new, type(module), attributes)
        module.__dict__.update(attributes)
        module.__class__ = new

    def _tail(self, path: str, owner: nn.Module, finding: LinearTail, along: dict[str, nn.Module]) -> Tail:
        members, callers = tuple(along[part] for part in finding.parts), {"": owner, **along}
        orders = tuple((m, list(m)) for m in callers.values() if isinstance(m, nn.Sequential))
        flags = list(finding.flags)
        for name, module in along.items():
            caller, _, child = name.rpartition(".")
            if not isinstance(callers[caller], nn.Sequential):
                flags.append((callers[caller], child, module))
        whole, keeper = type(owner) is nn.Sequential, owner
        if path and isinstance(owner, nn.Sequential) and not whole:  # cut to pieces, it would stand there no more
            parent, _, child = path.rpartition(".")
            keeper = self.network.get_submodule(parent)
            flags.append((keeper, child, owner))
        kinds = tuple((m, type(m)) for m in along.values())
        tail = Tail(owner if whole else members[0], members, orders, tuple(flags), kinds)
        if self.frozen:
            tail.collapsed = collapse_tail(tail.pairs(), tail.scales)
        if not whole:
            for i, member in enumerate(members):
                self._swap(member, TailShuffle if i % 2 else TailConv if i else TailStart, _tails=Link([tail]))
            self._swap(keeper, type(keeper), **{f"_tail from {path}.{finding.parts[0]}": tail})
        return tail

    def _reason_no_tail(self, owner: nn.Module, parts: tuple[str, ...], along: dict[str, Any]) -> str | None:
        for name, module in along.items():
            if self.places[id(module)] > 1:
                return f"{name} is used more than once in the network"
            if name not in parts and (reason := reason_not_fusable(module)):
                return f"{name} around it {reason}"
        if len(parts) < 3 or len(parts) % 2 == 0:
            return f"its adapter names {len(parts)} parts; a tail is convolution, PixelShuffle, ..., convolution"
        members = [along[part] for part in parts]
        for i, module in enumerate(members):
            if reason := reason_not_plain(module, nn.PixelShuffle) if i % 2 else reason_no_conv(module):
                return f"{parts[i]} {reason}"
        takes = []
        for conv, shuffle, then in zip(members[:-1:2], members[1::2], members[2::2], strict=True):
            if then.in_channels * shuffle.upscale_factor**2 != conv.out_channels:
                return "its convolutions and PixelShuffles do not go together in their numbers of channels"
            takes += [conv.out_channels, then.in_channels]
        if type(owner) is not nn.Sequential and members[-1].out_channels in takes:
            return "image and features have the same number of channels, by which its parts tell them apart"
        return None

    def reason_not_followed(self, path: str) -> str:
        owner = self.network.get_submodule(path.rpartition(".")[0])
        if isinstance(owner, nn.Sequential) and (reason := reason_not_fusable(owner)):
            return f"stands in a {type(owner).__name__} that {reason}"
        return f"is called by the forward of {type(owner).__name__}; no adapter knows it"


def _steps(module: Any, tails: list[Tail]) -> Iterator[nn.Module | Tail]:
    starts = {id(tail.members[0]): tail for tail in tails}
    watched = {id(m) for tail in tails for m, _ in tail.kinds}
    for child in module._modules.values():
        if id(child) in starts:
            yield starts[id(child)]
        elif id(child) not in watched:
            yield child
        elif len(child._modules):  # a container around a tail
            yield from _steps(child, tails)


def _give_back(module: nn.Module, new: type, old: type, attributes: dict[str, object]) -> None:
    """Give the old class back; what a parametrization or FSDP derived from the new one is derived from the old."""
    module.__class__ = _rebased(type(module), new, old)
    for name in attributes:
        module.__dict__.pop(name, None)


def _rebased(kind: type, new: type, old: type) -> type:
    if kind is new:
        return old
    bases = tuple(_rebased(base, new, old) for base in kind.__bases__)
    if bases == kind.__bases__:
        return kind
    namespace = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(kind.__name__.replace(new.__name__, old.__name__), bases, namespace)
