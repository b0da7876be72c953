"""Attention by whole products, a few heads at a time, for CPUs whose matrix products are fast in bfloat16.

The scores of these heads stay in the cache and are not kept: the backward makes them again. PyTorch's fused CPU kernel
uses tile instructions (AMX) but not AVX512-BF16, where this is the faster way.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_SCORES = 1 << 19  # of the heads worked on at once: 1 MB of bfloat16, a core's second-level cache


def _few_heads(num_heads: int, scores_per_head: int, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Views [h, N, d] of every tensor [B, N, D], image by image, a few heads at a time."""
    step = max(1, min(num_heads, _SCORES // scores_per_head))
    for image in zip(*tensors, strict=True):
        heads = [x.unflatten(-1, (num_heads, -1)).transpose(0, 1).split(step) for x in image]
        yield from (list(few) for few in zip(*heads, strict=True))


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)  # beta=0 ignores the first


def attention_by_products(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float) -> Tensor:
    """softmax(q k^T * scale) v per head; q [B, N, D], k and v [B, M, D], any strides -> [B, N, D] in their dtype."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for o, a, b, c in _few_heads(num_heads, q.shape[1] * k.shape[1], out, q, k, v):
        p = torch.softmax(_scaled_product(a, b.mT, scale), -1)  # [h, N, M]
        o.copy_(torch.bmm(p, c))
    return out


def attention_by_products_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Writes the gradients of q, k and v, for ``grad`` [B, N, D], to ``dq``, ``dk`` and ``dv``."""
    for g, a, b, c, da, db, dc in _few_heads(num_heads, q.shape[1] * k.shape[1], grad, q, k, v, dq, dk, dv):
        p = torch.softmax(_scaled_product(a, b.mT, scale), -1)  # [h, N, M]
        dc.copy_(torch.bmm(p.mT, g))
        ds = torch.ops.aten._softmax_backward_data(torch.bmm(g, c.mT), p, -1, p.dtype)  # p (dp - sum of p dp)
        da.copy_(_scaled_product(ds, b, scale))
        db.copy_(_scaled_product(ds.mT, a, scale))
