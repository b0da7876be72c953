"""What a backend is, which one serves a call (``impl=`` > ``IPT_FAST_IMPL`` > automatic), and how an op is registered.

An explicit choice that cannot serve raises; only the automatic choice may pass a backend over.
"""

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.overrides import handle_torch_function, has_torch_function

from ipt_fast.ops._common import any_requires_grad, check_type, forward_mode

_VARIABLE = "IPT_FAST_IMPL"
_NAMESPACE = "ipt_fast"  # of the operators
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Backend:
    """One way to compute an op.

    Attributes:
        name: what ``impl=`` calls it.
        forward: the launcher; what it takes and returns is fixed by its op.
        backward: the launcher of the gradient; None where autograd differentiates ``forward``.
        unsupported_reason: description of a call -> None where this backend can serve it, otherwise the reason why
            not, as the end of the sentence 'impl="name" ...'.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    unsupported_reason: Callable[[Any], str | None] = lambda call: None


def constant_to_compilers(function: _F) -> _F:
    """Let compilers call ``function`` while they trace, and take its result as a constant.

    By hand, because ``torch.compiler.assume_constant_result``, which sets the same mark, imports the whole compiler
    when it decorates: a second for every import of the ops.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Backends:
    """The backends of one op.

    Args:
        op: the op's name.
        call: the type that describes a call, a NamedTuple of plain constants (``operator.index`` makes one of a size),
            the device first; the others have defaults.
        backends: all of them.
        preference: description of a call -> names of all backends, the best one first.
    """

    def __init__(
        self, op: str, call: type, backends: Sequence[Backend], preference: Callable[[Any], Sequence[str]]
    ) -> None:
        self.op = op
        self._call = call
        self._by_name = {backend.name: backend for backend in backends}
        self._preference = preference

    def __getitem__(self, name: str) -> Backend:
        return self._by_name[name]

    def status(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, str | None]:
        """Return every backend in the order of automatic choice on ``device`` -> None, or why it cannot run there.

        A dtype counts for the ops that judge by it.
        """
        judged = {"dtype": dtype} if "dtype" in self._call._fields else {}  # type: ignore[attr-defined]
        return self.reasons(self._call(str(device), **judged))

    def reasons(self, call: Any) -> dict[str, str | None]:
        """Return every backend, best first -> None where it can serve ``call``, otherwise the reason why not."""
        return {name: self[name].unsupported_reason(call) for name in self._preference(call)}

    def resolve(self, impl: str | None, call: Any) -> Backend:
        """Return the backend that serves ``call``; ``impl`` is the caller's explicit choice, or None.

        Raises:
            TypeError: the choice is no name.
            ValueError: the chosen name is no backend of the op.
            RuntimeError: the chosen backend cannot serve this call, or no backend can.
        """
        if impl is not None:
            check_type(self.op, "impl", impl, str, "the name of a backend or None")
        return self._by_name[self._resolve(impl, *call)]

    @constant_to_compilers
    def _resolve(self, impl: str | None, *fields: Any) -> str:
        reasons = self.reasons(self._call(*fields))
        if beyond := _beyond_a_backward():
            reasons |= {name: beyond for name in reasons if reasons[name] is None and self[name].backward}
        return choose(self.op, impl, reasons)

    def call(self, function: type[torch.autograd.Function], backend: Backend, tensors: Sequence, *options: Any) -> Any:
        """Compute by ``backend``; ``function`` is the op's, its inputs are the tensors, the options and a name."""
        if backend.backward is None:
            return backend.forward(*tensors, *options)
        if torch.compiler.is_compiling():
            tensors = _each_once(tensors)
        compute = function.apply if any_requires_grad(tensors) else function.forward
        return compute(*tensors, *options, backend.name)

    def define_forward(self, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Register ``ipt_fast::<op>``; its last argument, ``str impl``, names the backend whose ``forward`` computes.

        Returns:
            What calls it. It has no gradient of its own: an ``autograd.Function`` of the op goes round it, so that
            ``torch.func`` works.
        """
        return _define(self.op, schema, lambda *args: self[args[-1]].forward(*args[:-1]), fake)

    def define_backward(self, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Register ``ipt_fast::<op>_backward`` in the same way.

        Returns:
            What calls it, as a node of the graph: a second derivative meets a reason and not a missing path.
        """

        def launch(*args: Any) -> Any:
            launcher = self[args[-1]].backward
            assert launcher is not None  # the op's autograd.Function asks for no other
            return launcher(*args[:-1])

        op = self.op

        class Gradient(torch.autograd.Function):
            generate_vmap_rule = True
            forward = staticmethod(_define(f"{op}_backward", schema, launch, fake))

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                pass

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                advice = f'use impl="eager" or set {_VARIABLE}=eager'
                raise RuntimeError(f"{op}: this backend cannot differentiate twice; {advice}")

        return Gradient.apply


def _each_once(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return views of the tensors that came before: Dynamo of torch 2.13 refuses a function that gets one twice."""
    once: list[Tensor | None] = []
    for x in tensors:
        once.append(x.view_as(x) if x is not None and any(x is y for y in once) else x)
    return once


def _define(name: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    torch.library.define(f"{_NAMESPACE}::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"{_NAMESPACE}::{name}", "CompositeExplicitAutograd")(function)
    torch.library.register_fake(f"{_NAMESPACE}::{name}")(fake)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"{_NAMESPACE}::{name} has no gradient of its own; call the function in ipt_fast.ops")

    torch.library.register_autograd(f"{_NAMESPACE}::{name}", refuse)  # otherwise a gradient would be dropped
    op = getattr(getattr(torch.ops, _NAMESPACE), name)

    def one_by_one(info: Any, in_dims: Any, *args: Any) -> Any:  # what vmap does; it would warn of its own loop
        dims = zip(args, in_dims, strict=True)
        parts = zip(*(x.unbind(d) if isinstance(d, int) else [x] * info.batch_size for x, d in dims), strict=True)
        results = [op(*part) for part in parts]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(each) for each in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    torch.library.register_vmap(f"{_NAMESPACE}::{name}", one_by_one)

    def call(*args: Any) -> Any:
        return op(*args)

    call.__signature__ = inspect.signature(fake)  # type: ignore[attr-defined]  # compilers count the parameters
    return call


def _beyond_a_backward() -> str | None:
    """Return what is asked of a call that a backend with a backward of its own cannot do, or None."""
    if forward_mode():
        return "has no forward-mode derivative"
    levels = torch._C._functorch.get_interpreter_stack() or []
    if sum(level.key() == TransformType.Grad for level in levels) > 1:
        return "cannot differentiate twice"
    return "cannot be saved by torch.jit.trace" if torch.jit.is_tracing() else None


def overridable(function: _F) -> _F:
    """Let stand-ins for tensors (``torch.fx.Proxy``, subclasses) see a call of ``function`` as one of PyTorch's own."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def choose(op: str, impl: str | None, reasons: Mapping[str, str | None]) -> str:
    """Return the name of the backend to use.

    Args:
        op: name of the op, for messages and for the per-op form of the variable.
        impl: the caller's explicit choice, or None.
        reasons: every backend of the op in order of automatic preference -> None where it can serve this call,
            otherwise the reason why not.

    ``IPT_FAST_IMPL`` is either one name, which binds the ops that have a backend of that name
    (``IPT_FAST_IMPL=triton``), or a list per op, which binds strictly
    (``IPT_FAST_IMPL=patch_attention=sdpa,pixelshuffle_tail=eager``).

    Raises:
        ValueError: the chosen name is no backend of the op.
        RuntimeError: the chosen backend cannot serve this call, or no backend can.
    """
    source = "impl="
    if impl is None:
        impl, source = _from_environment(op, reasons), f"{_VARIABLE}="
    if impl is not None:
        if not isinstance(impl, str):
            raise TypeError(f"{op}: impl must be one of {', '.join(reasons)} or None (got {type(impl).__name__})")
        if impl not in reasons:
            raise ValueError(f'{op}: {source}"{impl}" is not a backend; choose one of {", ".join(reasons)}')
        if reasons[impl] is not None:
            usable = [name for name, reason in reasons.items() if reason is None]
            advice = " or ".join(f'impl="{name}"' for name in usable) or "another device or dtype"
            raise RuntimeError(f'{op}: {source}"{impl}" {reasons[impl]}; use {advice}')
        return impl
    for name, reason in reasons.items():
        if reason is None:
            return name
    raise RuntimeError(f"{op}: no backend can serve this call: " + "; ".join(f"{n} {r}" for n, r in reasons.items()))


def _from_environment(op: str, backends: Mapping[str, str | None]) -> str | None:
    value = os.environ.get(_VARIABLE, "").strip()
    if not value:
        return None
    if "=" not in value:
        return value if value in backends else None
    choices = dict(part.strip().split("=", 1) for part in value.split(",") if "=" in part)
    return choices.get(op)


_assumed: ContextVar[tuple[int, int] | None] = ContextVar("assumed capability", default=None)


@contextmanager
def assume(capability: tuple[int, int]) -> Iterator[None]:
    """Let backends judge calls on "cuda" as if that were a GPU of ``capability``, with every package installed."""
    token = _assumed.set(capability)
    try:
        yield
    finally:
        _assumed.reset(token)


def assuming() -> bool:
    """Return whether ``assume`` is in force: a plan for another machine, of which no call may be made."""
    return _assumed.get() is not None


def capability(device: torch.device | str) -> tuple[int, int] | None:
    """Return a GPU's compute capability; None for other devices, and where no GPU is."""
    if torch.device(device).type != "cuda":
        return None
    return _assumed.get() or (torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None)


def capability_below(least: tuple[int, int], device: torch.device | str) -> str | None:
    """Return that ``device`` is no GPU of that capability, as the end of a sentence, or None."""
    found = capability(device)
    if found is not None and found >= least:
        return None
    kind = torch.device(device).type
    words = f"{found[0]}.{found[1]}" if found else "none" if kind == "cuda" else kind
    return f"needs a CUDA device of capability {least[0]}.{least[1]} or newer (found {words})"


def module_missing(name: str) -> str | None:
    """Return why a backend that imports ``name`` cannot be used, or None; without importing it."""
    return None if assuming() or _installed(name) else f"needs the package {name}, which is not installed"


@functools.cache
def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def triton_missing(device: torch.device | str, least: tuple[int, int] = (8, 0)) -> str | None:
    """Return why the Triton kernels cannot run on ``device``, or None (a new enough GPU, or Triton's interpreter).

    Triton's tensor-core products need capability 8.0; kernels without any run from 7.0 on.
    """
    reason = module_missing("triton")
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")  # set, it runs the kernels on CPU tensors
    return reason if reason or (interpreted and not assuming()) else capability_below(least, device)
