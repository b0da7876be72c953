"""What a call leaves for its backward."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_by(call: Callable[[], object]) -> list[Tensor]:
    """Return the tensors, in order. Holding them keeps an address from coming twice."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        call()
    return saved


def saved_bytes(call: Callable[[], object], weights: Iterable[Tensor] = ()) -> int:
    """Their bytes, each storage once, those of the weights not counted."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in saved_by(call)}
    for weight in weights:
        storages.pop(weight.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


def negative_view(x: Tensor) -> Tensor:
    """Return -x as a view with the negative bit set, which kernels that read memory would not see."""
    return torch.complex(torch.zeros_like(x), x).conj().imag
