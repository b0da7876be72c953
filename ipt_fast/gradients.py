"""Whether a call is one that learns."""

from collections.abc import Iterable

import torch
from torch import Tensor


def any_requires_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd would record a call with these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
