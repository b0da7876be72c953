"""Inputs on which attention of ``csrc/`` is compared with the eager reference, and how much it may differ.

For the emulated kernels (``tests/csrc``) and for a GPU (``python -m bench.proof.csrc``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ipt_fast.ops import patch_attention


class Case(NamedTuple):
    """Sizes, whether embeddings are added, the scale (None: d ** -0.5), and mean and deviation of the inputs."""

    B: int
    H: int
    N: int
    M: int
    d: int
    embeds: bool = True
    scale: float | None = None
    mean: float = 0.0
    size: float = 1.0


# One token, odd lengths, the edges of a chunk of 256 keys, cross-attention, several heads.
SHAPES = (
    *((1, 1, 1, 1, 48), (2, 2, 17, 59, 48), (1, 1, 255, 256, 48), (1, 2, 256, 256, 48), (1, 1, 257, 255, 48)),
    *((1, 1, 33, 600, 48), (1, 2, 59, 257, 32), (1, 1, 256, 256, 32), (1, 1, 257, 256, 64), (1, 2, 59, 300, 64)),
)
SCALES = (1.0, -0.3, 0.0)
# Mean and deviation. Scores far from zero: sums of exponentials not relative to the row's maximum overflow here.
SPREADS = ((3.0, 1.0), (0.0, 6.0), (-8.0, 0.5))
CASES = (
    *(Case(*shape, embeds) for shape in SHAPES for embeds in (True, False)),
    *(Case(1, 1, 100, 120, 48, scale=scale) for scale in SCALES),
    *(Case(1, 1, 96, 160, 48, mean=mean, size=size) for mean, size in SPREADS),
)
NAMES = ("out", "dq", "dk", "dv", "dq_embed", "dk_embed")


def draw(case: Case) -> tuple[Tensor | None, ...]:
    """Return q [B, N, D], k and v [B, M, D], q_embed [N, D] and k_embed [M, D] or None, and the gradient of out."""
    B, H, N, M, d, embeds, _, mean, size = case
    sizes = [(B, N, H * d), (B, M, H * d), (B, M, H * d), *(((N, H * d), (M, H * d)) if embeds else (None, None))]
    inputs = [None if s is None else (torch.randn(s) * size + mean).half() for s in sizes]
    return *inputs, torch.randn(B, N, H * d).half()


def attend(
    tensors: Sequence[Tensor | None], num_heads: int, scale: float | None, impl: str, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return out and the gradients of all inputs that are there, in the order of ``NAMES``."""
    *inputs, grad = (None if x is None else x.detach().to(dtype) for x in tensors)
    own = [None if x is None else x.clone().requires_grad_() for x in inputs]
    q, k, v, q_embed, k_embed = own
    out = patch_attention(q, k, v, num_heads=num_heads, q_embed=q_embed, k_embed=k_embed, scale=scale, impl=impl)
    return out.detach(), *torch.autograd.grad(out, [x for x in own if x is not None], grad)


def errors(
    found: Sequence[Tensor], tensors: Sequence[Tensor | None], num_heads: int, scale: float | None
) -> list[tuple[str, float, float]]:
    """Return (name, error, allowed error) of each result: against float64, twice what eager float16 misses by."""
    exact = attend(tensors, num_heads, scale, "eager", torch.float64)
    rounded = attend(tensors, num_heads, scale, "eager", torch.float16)
    grad = tensors[-1]
    assert grad is not None
    seen = 1e-6 * grad.double().norm().item()  # what counts as an error where there is no gradient at all
    rows = []
    for name, x, reference, half in zip(NAMES, found, exact, rounded, strict=False):
        error, allowed = ((y.double() - reference).norm().item() for y in (x, half))
        rows.append((name, error, 2 * allowed + seen))
    return rows
