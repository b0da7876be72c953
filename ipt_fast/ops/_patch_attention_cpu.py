"""Attention by whole products, some heads at a time, for CPUs whose matrix products are fast in bfloat16.

The scores of these heads stay in the cache and are not kept: the backward makes them again. PyTorch's fused CPU kernel
uses tile instructions (AMX) but not AVX512-BF16, where this is the faster way.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Of the heads worked on at once, for each thread: 2 MB of bfloat16, about a core's share of the cache.
_SCORES = 1 << 20


def _parts(num_heads: int, scores_per_head: int, *tensors: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Some heads, and views [images, heads, N, d] of every tensor [B, N, D]: some images, or some heads of one."""
    at_once = max(1, _SCORES * torch.get_num_threads() // scores_per_head)
    images, heads = max(1, at_once // num_heads), min(num_heads, at_once)
    for start in range(0, len(tensors[0]), images):
        split = [x[start : start + images].unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in tensors]
        for head in range(0, num_heads, heads):
            part = slice(head, head + heads)
            yield part, [x[:, part] for x in split]


def _flat(x: Tensor, embed: Tensor | None = None) -> Tensor:
    """[images heads, N, d], with ``embed`` [heads, N, d] added on the way."""
    if embed is None:
        return x.reshape(-1, *x.shape[2:])
    return torch.add(x, embed, out=x.new_empty(x.shape)).flatten(0, 1)


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)  # beta=0 ignores the first


def bmm_attention(
    q: Tensor, k: Tensor, v: Tensor, q_embed: Tensor | None, k_embed: Tensor | None, num_heads: int, scale: float
) -> Tensor:
    """softmax((q + q_embed) (k + k_embed)^T * scale) v per head: q [B, N, D], k and v [B, M, D], q_embed [N, D] or
    None, k_embed [M, D] or None, any strides -> [B, N, D] in their dtype."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    embeds = [None if e is None else e.unflatten(-1, (num_heads, -1)).transpose(0, 1) for e in (q_embed, k_embed)]
    for heads, (o, q_part, k_part, v_part) in _parts(num_heads, q.shape[1] * k.shape[1], out, q, k, v):
        a, b = (
            _flat(x, None if e is None else e[heads]) for x, e in zip((q_part, k_part), embeds, strict=True)
        )  # [h, N, d], [h, M, d]
        p = torch.softmax(_scaled_product(a, b.mT, scale), -1)  # [h, N, M]
        o.copy_(torch.bmm(p, _flat(v_part)).view(o.shape))
    return out


def bmm_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Writes the gradients of q, k and v, for ``grad`` [B, N, D], to ``dq``, ``dk`` and ``dv``."""
    for _, (*gqkv, da, db, dc) in _parts(num_heads, q.shape[1] * k.shape[1], grad, q, k, v, dq, dk, dv):
        g, a, b, c = (_flat(x) for x in gqkv)
        p = torch.softmax(_scaled_product(a, b.mT, scale), -1)  # [h, N, M]
        dc.copy_(torch.bmm(p.mT, g).view(dc.shape))
        ds = torch.ops.aten._softmax_backward_data(torch.bmm(g, c.mT), p, -1, p.dtype)  # p (dp - sum of p dp)
        da.copy_(_scaled_product(ds, b, scale).view(da.shape))
        db.copy_(_scaled_product(ds.mT, a, scale).view(db.shape))
