"""How a call may end: the reference's numbers, or an error that a person can act on."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.api.wrong import fault_of

AGREED, REFUSED = "agreed", "refused clearly"
# Of the difference from the reference in float64, in relative norm, beside what the plain way in that dtype errs.
_BUDGET = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
DTYPES = tuple(_BUDGET)


class FaultError(Exception):
    """A call gave other numbers than the reference, or an error that helps nobody."""


def refused(error: Exception, names: Sequence[str], values: Sequence[Any] = ()) -> str:
    """Return ``REFUSED`` where the error is clear and names one of ``names`` or ``values``.

    Raises:
        FaultError: it is not.
    """
    reasons = [fault_of(error, name, value) for name in names for value in (*values, None)]
    if None not in reasons:
        raise FaultError(reasons[0]) from error
    return REFUSED


def close(what: str, found: Tensor, exact: Tensor, plain: Tensor, dtype: torch.dtype) -> None:
    """Compare with the reference: at most three times as far from it as the ``plain`` way, and a budget.

    Raises:
        FaultError: shapes differ, or numbers.
    """
    if found.shape != exact.shape:
        raise FaultError(f"{what}: shape {list(found.shape)}, the reference's is {list(exact.shape)}")
    if found.is_meta or not found.numel():
        return
    found, exact, plain = (x.detach().double() for x in (found, exact, plain))
    # A nan of the output must not vanish; one that was nowhere must not come up. How far it spreads is open.
    if exact.isfinite().all():
        unlike = plain.isfinite() & ~found.isfinite()
    else:
        unlike = found.isfinite() & ~exact.isfinite() & ~plain.isfinite()
    if unlike.any() and what.endswith("output"):
        raise FaultError(f"{what}: {int(unlike.sum())} of {found.numel()} numbers finite in one of the two alone")
    at = exact.isfinite() & found.isfinite()
    if not at.any():
        return
    error, allowed = (found - exact)[at].norm(), (plain - exact)[at].norm()
    if error > 3 * allowed + _BUDGET[dtype] * (exact[at].norm() + 0.1 * at.sum().sqrt()):
        raise FaultError(f"{what}: off by {error:.3g} of {exact[at].norm():.3g}, the plain way by {allowed:.3g}")


def laid_out(x: Tensor, rng: random.Random) -> Tensor:
    """Return a tensor of the same values in another layout: strides, a part of something larger, a negative view."""
    kind = rng.choice(["as it is"] * 4 + ["transposed", "part", "reversed twice", "negative", "last first"])
    if kind == "transposed" and x.dim() >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == "last first" and x.dim() >= 3:
        return x.movedim(0, 1).contiguous().movedim(1, 0)
    if kind == "part" and x.dim() >= 1:
        return torch.cat([x, torch.full_like(x, 9.0), x], -1).narrow(-1, 0, x.shape[-1])
    if kind == "reversed twice" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "negative" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(torch.zeros_like(x), -x).conj().imag
    return x


def differentiable(
    what: str, call: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: dict[str, Any], rng: random.Random
) -> str:
    """Compare a function of tensors, and its gradients, with the plain way in float64 and in the tensors' dtype.

    Raises:
        FaultError: they differ.
    """
    tensors = {name: x for name, x in inputs.items() if isinstance(x, Tensor)}
    others = {name: x for name, x in inputs.items() if not isinstance(x, Tensor)}
    dtype = next(iter(tensors.values())).dtype
    wanted = [name for name in tensors if rng.random() < 0.4]
    results: list[list[Tensor]] = []
    for function, to in ((call, dtype), (plain, torch.float64), (plain, dtype)):
        own = tensors if function is call else {name: x.detach().resolve_neg().to(to) for name, x in tensors.items()}
        own = {name: x.detach().requires_grad_(name in wanted) for name, x in own.items()}
        out = function(**own, **others)
        grads: Sequence[Tensor] = ()
        if wanted and out.requires_grad and out.numel():
            upstream = torch.ones_like(out) if out.is_meta else torch.linspace(-1, 2, out.numel()).reshape(out.shape)
            grads = torch.autograd.grad(out, [own[name] for name in wanted], upstream.to(out.dtype), allow_unused=True)
        results.append([out, *(torch.zeros(()) if g is None else g for g in grads)])
    for name, found, exact, rough in zip(["output", *wanted], *results, strict=False):
        close(f"{what} {name}", found, exact, rough, dtype)
    return AGREED
