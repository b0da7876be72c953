"""``accelerate``: ask every adapter about every module, check what they found, swap it, and write the report."""

from collections import Counter
from typing import Any

import torch
from torch import nn

from ipt_fast.acceleration._adapters import (
    Finding,
    LinearTail,
    Swap,
    adapters,
    is_plain_sequential,
    reason_no_conv,
)
from ipt_fast.acceleration._attention import EmbeddedAttention
from ipt_fast.acceleration._hooks import reason_not_fusable
from ipt_fast.acceleration._swap import Report, Swapped
from ipt_fast.acceleration._tail import Layout, Tail, TailConv, TailSequential, TailShuffle, TailStart
from ipt_fast.ops.pixelshuffle_tail import collapse_tail


class Acceleration:
    """What ``accelerate`` returns: call it to undo; ``report`` lists what was swapped and what not, and why."""

    def __init__(self, swapped: list[Swapped], report: Report):
        self._swapped, self.report = swapped, report

    def __call__(self) -> None:
        """Give every module that this call of ``accelerate`` swapped its class back; a second time does nothing."""
        for swapped in self._swapped:
            swapped.undo()
        self._swapped = []

    def __repr__(self) -> str:
        return f"Acceleration of {len(self.report.swapped)} parts; call it to undo\n{self.report}"


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
    (``torch.jit.trace``, ``torch.fx``, ``torch.export``) see the network's own operations; call ``undo()`` before
    ``torch.jit.script``.

    Where code calls the parts of a tail, as SwinIR does ``conv_last(upsample(x))``, the first part computes the image
    and the later ones let it pass. So ``network.upsample(x)``, called from outside, gives the image too.

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
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"accelerate: needs an nn.Module that is not scripted (got {type(network).__name__})")
    if not isinstance(frozen, bool):
        raise TypeError(f"accelerate: frozen must be True or False (got {frozen!r})")
    work = _Work(network, frozen)
    if frozen and any(not tail.collapsed for tail in work.tails_before()):
        raise ValueError("accelerate: frozen=True, but tails of this network are accelerated already; undo that first")
    try:
        work.run()
    except BaseException:
        Acceleration(work.swapped, work.report)()
        raise
    return Acceleration(work.swapped, work.report)


class _Work:
    """One call of ``accelerate``."""

    def __init__(self, network: nn.Module, frozen: bool):
        self.network, self.frozen = network, frozen
        self.report, self.swapped = Report(), list[Swapped]()
        self.places = Counter(id(m) for _, m in network.named_modules(remove_duplicate=False))
        self.decided: set[int] = set()  # modules that the report has spoken of

    def tails_before(self) -> list[Tail]:
        """Return the tails of modules that are swapped already."""
        held = [m for m in self.network.modules() if isinstance(m, TailSequential | TailStart)]
        return [tail for module in held for tail in module._own_tails()]

    def run(self) -> None:
        """Ask all adapters, then say of every PixelShuffle that nobody spoke of why it is left alone."""
        modules = [(p, m) for p, m in self.network.named_modules() if not isinstance(m, torch.jit.ScriptModule)]
        tails = self.tails_before()
        starts = {id(tail.members[0]) for tail in tails}
        self.decided.update(id(m) for tail in tails for m in tail.members)
        for path, module in modules:
            if isinstance(module, EmbeddedAttention) or id(module) in starts:
                self.report.already.append(path)
                self.decided.add(id(module))
        for path, module in modules:
            for name, match in adapters().items():
                self._apply(name, path, module, list(match(module) or ()))
        for path, module in modules:
            if isinstance(module, nn.PixelShuffle) and id(module) not in self.decided:
                self.report.refused.append((path, self._reason_not_followed(path)))

    def _apply(self, name: str, path: str, module: nn.Module, findings: list[Finding]) -> None:
        tails: list[Tail] = []
        for finding in findings:
            parts = finding.parts if isinstance(finding, LinearTail) else (finding.part,)
            try:
                members: list[Any] = [module.get_submodule(part) for part in parts]
            except AttributeError as error:
                raise ValueError(f"accelerate: adapter {name!r} names a part that is not there: {error}") from None
            if any(id(m) in self.decided for m in members):
                continue
            paths = [".".join(filter(None, (path, part))) for part in parts]
            if isinstance(finding, LinearTail):
                reason, where = self._reason_no_tail(module, finding, members), paths[min(1, len(paths) - 1)]
            elif isinstance(finding, Swap):
                reason, where = self._reason_no_swap(members[0], finding), paths[0]
            else:
                reason, where = finding.reason, paths[0]
            self.decided.update(id(m) for m in members)
            if reason:
                self.report.refused.append((where, reason))
            elif isinstance(finding, LinearTail):
                tail = self._tail(path, module, finding, members)
                tails.append(tail)
                frozen = "frozen, " if self.frozen else ""
                scales = "x".join(map(str, tail.scales))
                self.report.swapped.append(
                    (paths[0], f"x{scales} tail up to {paths[-1]} as one convolution, {frozen}{name}")
                )
            elif isinstance(finding, Swap):
                self.swapped.append(Swapped.swap(members[0], finding.new))
                self.report.swapped.append((where, finding.what))
        if tails and type(module) is nn.Sequential:
            self.swapped.append(Swapped.swap(module, TailSequential, _steps=tuple(_steps(module, tails))))
        for tail in tails:
            if type(module) is not TailSequential:
                self._swap_members(tail)
            tail.kinds = tuple(type(m) for m in (*tail.members, *tail.inner))

    def _swap_members(self, tail: Tail) -> None:
        first, image = tail.members[0], tail.convs[-1].out_channels
        self.swapped.append(Swapped.swap(first, TailStart, _tail=tail))
        for member in tail.members[1:]:
            new = TailConv if isinstance(member, nn.Conv2d) else TailShuffle
            self.swapped.append(Swapped.swap(member, new, _image_channels=image))

    def _tail(self, path: str, owner: nn.Module, finding: LinearTail, members: list[nn.Module]) -> Tail:
        inner, layouts = _containers(owner, finding.parts), [_layout(owner, "", finding.parts)]
        layouts += [_layout(container, name, finding.parts) for name, container in inner.items()]
        if path and isinstance(owner, nn.Sequential):  # cut to pieces, it would stand there no more
            parent, _, name = path.rpartition(".")
            layouts.append(Layout(self.network.get_submodule(parent), ((name, owner),), whole=False))
        tail = Tail(tuple(members), tuple(layouts), tuple(inner.values()), finding.flags)
        if self.frozen:
            tail.collapsed = (collapse_tail(tail.pairs(), tail.scales),)
        return tail

    def _reason_no_tail(self, owner: nn.Module, finding: LinearTail, members: list[Any]) -> str | None:
        inner = _containers(owner, finding.parts)
        named = [*zip(finding.parts, members, strict=True), *inner.items()]
        for name, module in named:
            if self.places[id(module)] > 1:
                return f"{name} is used more than once in the network"
        for name, container in inner.items():
            reason = reason_not_fusable(container)
            if reason is None and isinstance(container, nn.Sequential) and not is_plain_sequential(container):
                reason = "has a forward of its own"
            if reason:
                return f"{name} around it {reason}"
        if len(members) < 3 or len(members) % 2 == 0:
            return f"its adapter names {len(members)} parts; a tail is convolution, PixelShuffle, ..., convolution"
        for name, conv in list(zip(finding.parts, members, strict=True))[::2]:
            if reason := reason_no_conv(conv):
                return f"{name} {reason}"
        for name, shuffle in list(zip(finding.parts, members, strict=True))[1::2]:
            if type(shuffle) is not nn.PixelShuffle:
                return f"{name} is a {type(shuffle).__name__}, not a plain PixelShuffle"
            if reason := reason_not_fusable(shuffle):
                return f"{name} {reason}"
        takes = []
        for conv, shuffle, then in zip(members[:-1:2], members[1::2], members[2::2], strict=True):
            if then.in_channels * shuffle.upscale_factor**2 != conv.out_channels:
                return "its convolutions and PixelShuffles do not go together in their numbers of channels"
            takes += [conv.out_channels, then.in_channels]
        if type(owner) is not nn.Sequential and members[-1].out_channels in takes:
            return "image and features have the same number of channels, by which its parts tell them apart"
        return None

    def _reason_no_swap(self, module: nn.Module, swap: Swap) -> str | None:
        if swap.new.__base__ is not type(module):
            return f"is a {type(module).__name__}, of which {swap.new.__name__} is no direct subclass"
        return reason_not_fusable(module)

    def _reason_not_followed(self, path: str) -> str:
        owner = self.network.get_submodule(path.rpartition(".")[0])
        if isinstance(owner, nn.Sequential) and (reason := reason_not_fusable(owner)):
            return f"stands in a {type(owner).__name__} that {reason}"
        return f"is called by the forward of {type(owner).__name__}; no adapter knows it"


def _containers(owner: nn.Module, parts: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return what stands between ``owner`` and the parts, by name."""
    names = []
    for part in parts:
        steps = part.split(".")
        names += [".".join(steps[:i]) for i in range(1, len(steps))]
    return {name: owner.get_submodule(name) for name in dict.fromkeys(names)}


def _layout(container: nn.Module, name: str, parts: tuple[str, ...]) -> Layout:
    prefix = f"{name}." if name else ""
    used = dict.fromkeys(part[len(prefix) :].split(".")[0] for part in parts if part.startswith(prefix))
    whole = isinstance(container, nn.Sequential)
    children = container._modules.items() if whole else ((n, container._modules[n]) for n in used)
    return Layout(container, tuple((n, m) for n, m in children if m is not None), whole)


def _steps(module: nn.Module, tails: list[Tail]):
    starts = {id(tail.members[0]): tail for tail in tails}
    members = {id(m) for tail in tails for m in tail.members}
    inner = {id(m) for tail in tails for m in tail.inner}
    for child in module._modules.values():
        if child is None:
            continue
        if id(child) in starts:
            yield starts[id(child)]
        elif id(child) in inner:
            yield from _steps(child, tails)
        elif id(child) not in members:
            yield child
