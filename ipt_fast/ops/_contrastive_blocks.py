"""Blocks of a matrix of similarities: where they lie, and GEMMs with sums in float32 or wider."""

from collections.abc import Iterator

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def chunks(start: int, stop: int, step: int) -> Iterator[slice]:
    """Yield ranges of ``step`` and a last one of what is left."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def length(of: slice) -> int:
    """Return how many indices a range has."""
    return of.stop - of.start


def inside(group: slice, part: slice) -> slice:
    """Return ``part`` of a group, as a range of it."""
    return slice(part.start - group.start, part.stop - group.start)


def overlap(a: slice, b: slice) -> slice:
    """Return what two ranges share, which may be of length 0."""
    start = max(a.start, b.start)
    return slice(start, max(start, min(a.stop, b.stop)))


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return a b: of 16 bits in float32, but of bfloat16 on a CPU, where PyTorch has no such GEMM, in bfloat16."""
    if a.dtype == torch.float16 or (a.dtype == torch.bfloat16 and a.device.type != "cpu"):
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a, b, out=out)


def add_product(target: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b to ``target`` [..., D], which is dense; b is [..., D], too."""
    rows, b = target.flatten(0, -2), b.flatten(0, -2)
    if a.dtype == rows.dtype:
        rows.addmm_(a, b)
    else:
        rows += product(a, b)
