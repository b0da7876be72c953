"""Linear pixelshuffle tails in a live network: where they are, why others are none, and what runs in their place.

Two forms occur. In EDSR and RCAN the tail is one Sequential: ``Sequential(Upsampler, conv)``. In SwinIR, HAT and
everything built on BasicSR it is two attributes, ``self.conv_last(self.upsample(x))``: whether one follows the other
is known when it happens, so ``upsample`` hands out a pending tensor that ``conv_last`` recognises.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ipt_fast.acceleration._hooks import reason_not_fusable
from ipt_fast.acceleration._pending import Pending, pending, traced
from ipt_fast.acceleration._swap import Report, Swapped, original_class, swap
from ipt_fast.ops._common import any_requires_grad
from ipt_fast.ops.pixelshuffle_tail import pixelshuffle_tail, unlike_plain

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Run:
    """Consecutive modules that are one linear map: convolution, PixelShuffle, ..., and the last convolution or not."""

    first: int
    modules: tuple[nn.Module, ...]

    @property
    def convs(self) -> list[nn.Conv2d]:
        return [m for m in self.modules if isinstance(m, nn.Conv2d)]

    @property
    def scales(self) -> list[int]:
        return [m.upscale_factor for m in self.modules if isinstance(m, nn.PixelShuffle)]

    @property
    def end(self) -> int:
        return self.first + len(self.modules)

    @property
    def open(self) -> bool:
        return isinstance(self.modules[-1], nn.PixelShuffle)


def why_no_conv(module: nn.Module) -> str | None:
    """Why a module is no convolution that the op can stand for, or None."""
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
    return type(module) is nn.PixelShuffle and reason_not_fusable(module) is None


def is_plain_sequential(module: nn.Module) -> bool:
    """Whether calling it is calling its children in order."""
    return (
        isinstance(module, nn.Sequential)
        and getattr(original_class(module), "forward", None) is nn.Sequential.forward
        and reason_not_fusable(module) is None
    )


def leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that a Sequential calls one after the other, through nested Sequentials, with their paths."""
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        if is_plain_sequential(child):
            yield from leaves(child, where)
        else:
            yield where, child


def find_runs(modules: list[nn.Module]) -> list[Run]:
    """All runs, as long as they can be; an open one only at the end."""
    runs, i = [], 0
    while i < len(modules):
        j = i
        while j + 1 < len(modules) and why_no_conv(modules[j]) is None and _is_shuffle(modules[j + 1]):
            j += 2
        if j > i and j < len(modules) and why_no_conv(modules[j]) is None:
            j += 1
        if j > i and (not isinstance(modules[j - 1], nn.PixelShuffle) or j == len(modules)):
            runs.append(Run(i, tuple(modules[i:j])))
        i = max(j, i + 1)
    return runs


def _can_serve(run: Run, x: object) -> bool:
    if type(x) is not Tensor or x.dim() != 4 or x.dtype not in _FLOATS or x.shape[1] != run.convs[0].in_channels:
        return False
    return not torch.nn.modules.module._has_any_global_hook()


class TailSequential(Swapped):
    """A Sequential that runs its linear tails as one op. What it finds at a call counts, not what was there before."""

    def forward(self, x):
        modules = [m for _, m in leaves(self)]  # type: ignore[arg-type]
        done = 0
        for run in find_runs(modules):
            for module in modules[done : run.first]:
                x = module(x)
            done = run.end
            if run.open and self._may_wait(run, x):
                return _put_off(x, run)
            if run.open or not _can_serve(run, x):
                for module in run.modules:
                    x = module(x)
            else:
                x = pixelshuffle_tail(x, run.convs, run.scales)
        for module in modules[done:]:
            x = module(x)
        return x

    def _may_wait(self, run: Run, x: object) -> bool:
        if not self.__dict__.get("_tail_is_followed") or not _can_serve(run, x) or traced():
            return False
        assert isinstance(x, Tensor)
        tensors = [x, *(t for conv in run.convs for t in (conv.weight, conv.bias))]
        return not any_requires_grad(tensors)


def _put_off(x: Tensor, run: Run) -> Pending:
    R = 1
    for r in run.scales:
        R *= r
    shape = (x.shape[0], run.convs[-1].out_channels // run.scales[-1] ** 2, R * x.shape[2], R * x.shape[3])
    device = x.device.type
    on, cast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    dtype = cast if on and x.dtype != torch.float64 else x.dtype

    def make(source: Tensor) -> Tensor:
        with torch.autocast(device, dtype=cast, enabled=on):
            for module in run.modules:
                source = module(source)
        return source

    return pending(shape, dtype, make, [x], run)


class TailConv(Swapped):
    """A convolution that does the pending tail before it at the same time."""

    def forward(self, x):
        if type(x) is Pending and x.waiting and isinstance(x.job, Run) and why_no_conv(self) is None:  # type: ignore[arg-type]
            x.check_sources()
            return pixelshuffle_tail(x.sources[0], [*x.job.convs, self], x.job.scales)
        return super().forward(x.compute() if type(x) is Pending else x)  # type: ignore[misc]


def swap_tails(network: nn.Module, report: Report) -> list[nn.Module]:
    """Swap every tail of the network; returns what was swapped."""
    swapped: list[nn.Module] = []
    inside: set[int] = set()  # modules that an outer Sequential calls
    for path, module in list(network.named_modules()):
        if is_plain_sequential(module) and id(module) not in inside:
            inside.update(id(m) for m in module.modules())
            swapped += _swap_sequential(network, path, module, report)
        elif isinstance(module, nn.PixelShuffle) and id(module) not in inside:
            owner = network.get_submodule(path.rpartition(".")[0])
            report.refused.append((path, _why_not_followed(owner)))
    return swapped


def _swap_sequential(network: nn.Module, path: str, module: nn.Module, report: Report) -> list[nn.Module]:
    named = list(leaves(module, path))
    modules = [m for _, m in named]
    runs = find_runs(modules)
    swapped: list[nn.Module] = []
    if isinstance(module, TailSequential):
        report.already.append(path)
        runs_done = runs
    else:
        runs_done = []
        for run in runs:
            what = f"x{'x'.join(map(str, run.scales))} tail as one convolution"
            if run.open:
                convs = _followers(network, path, module, run.convs[-1].out_channels // run.scales[-1] ** 2)
                if not convs:
                    where = named[run.first][0]
                    report.refused.append((where, "no plain convolution that could follow stands beside it"))
                    runs_done.append(run)
                    continue
                what += f" together with {' or '.join(name for name, _ in convs)}, while no gradient is wanted"
                for _, conv in convs:
                    if not isinstance(conv, TailConv):
                        swap(conv, TailConv)
                        swapped.append(conv)
                module.__dict__["_tail_is_followed"] = True
            runs_done.append(run)
            report.swapped.append((named[run.first][0], what))
        if any(not run.open for run in runs) or "_tail_is_followed" in module.__dict__:
            swap(module, TailSequential)
            swapped.append(module)
    served = {i for run in runs_done for i in range(run.first, run.end)}
    for i, (where, leaf) in enumerate(named):
        if isinstance(leaf, nn.PixelShuffle) and i not in served:
            report.refused.append((where, _why_not(named, i)))
        elif i not in served:
            for inner, shuffle in leaf.named_modules():
                if isinstance(shuffle, nn.PixelShuffle):
                    report.refused.append((f"{where}.{inner}", _why_not_followed(leaf)))
    return swapped


def _why_not_followed(owner: nn.Module) -> str:
    if isinstance(owner, nn.Sequential) and (reason := reason_not_fusable(owner)):
        return f"stands in a {type(owner).__name__} that {reason}"
    return f"is called by the forward of {type(owner).__name__}; only plain Sequentials can be followed"


def _followers(network: nn.Module, path: str, module: nn.Module, channels: int) -> list[tuple[str, nn.Conv2d]]:
    """Convolutions beside ``module``, registered after it, that could take its result."""
    if not path:
        return []
    prefix, _, _ = path.rpartition(".")
    siblings = list(network.get_submodule(prefix).named_children())
    place = next(i for i, (_, m) in enumerate(siblings) if m is module)
    return [
        (f"{prefix}.{name}" if prefix else name, m)
        for name, m in siblings[place + 1 :]
        if isinstance(m, nn.Conv2d) and why_no_conv(m) is None and m.in_channels == channels
    ]


def _why_not(named: list[tuple[str, nn.Module]], place: int) -> str:
    if reason := reason_not_fusable(named[place][1]):
        return reason
    for i, word in ((place - 1, "before"), (place + 1, "after")):
        if not 0 <= i < len(named):
            return f"nothing stands {word} it in its Sequential"
        reason = why_no_conv(named[i][1])
        if reason:
            return f"{named[i][0]} {word} it {reason}"
    after, where = named[place + 1 :], named[place + 1][0]
    following = f": {after[1][0]} follows it" if len(after) > 1 else ""
    return f"the chain goes on after {where} with what is no plain part of a tail{following}"
