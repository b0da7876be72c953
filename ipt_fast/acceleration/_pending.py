"""A tensor that is computed when somebody looks at it.

A module cannot know what its caller does with the result. It may hand out a pending tensor: the next module recognises
it and does both parts at once, and for everybody else it is the tensor that the module would have returned.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# What can be told without computing: the getters of these attributes, as __torch_function__ is given them.
_SHAPE = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")} | {Tensor.dim, Tensor.size}


class Pending(Tensor):
    """DecodedBatch by ``pending``; never with gradients, as autograd would have to see what has not happened yet."""

    _make: Callable[[], Tensor]
    _value: Tensor | None
    _versions: list[tuple[Tensor, int]]
    sources: list[Tensor]
    job: object

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in _SHAPE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return func(*_computed(args), **_computed(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return func(*_computed(args), **_computed(kwargs or {}))

    @property
    def waiting(self) -> bool:
        """Whether nobody has looked at it yet."""
        return self._value is None

    def check_sources(self) -> None:
        """Raises RuntimeError where what it would be computed from has changed since."""
        if any(source._version != version for source, version in self._versions):
            raise RuntimeError(
                "accelerate: the input of a module was changed in place before its result was used; "
                "undo the acceleration of this network, or copy the input first"
            )

    def compute(self) -> Tensor:
        """The tensor, computed once; later changes in place are made to it."""
        if self._value is None:
            self.check_sources()
            with torch.no_grad():
                self._value = self._make()
        return self._value


def pending(
    shape: Sequence[int], dtype: torch.dtype, make: Callable[..., Tensor], sources: Sequence[Tensor], job: object = None
) -> Pending:
    """A tensor of that shape and dtype on the device of ``sources[0]``, equal to ``make(*sources)``.

    Args:
        job: what the module that recognises the tensor needs to know.
    """
    # Inference tensors count no changes, so they are copied.
    kept = [s.clone() if s.is_inference() else s for s in sources]
    tensor = torch.Tensor._make_wrapper_subclass(Pending, tuple(shape), dtype=dtype, device=sources[0].device)
    assert isinstance(tensor, Pending)
    tensor._value, tensor.job = None, job
    tensor._make, tensor.sources = lambda: make(*kept), kept
    tensor._versions = [(s, s._version) for s in kept if not s.is_inference()]
    return tensor


def traced() -> bool:
    """Whether a compiler or an exporter follows the call: then nothing may be put off."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _computed(value):
    if isinstance(value, Pending):
        return value.compute()
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Pending, list, tuple, dict)) for v in value):
        items = [_computed(v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: _computed(v) for key, v in value.items()}
    return value
