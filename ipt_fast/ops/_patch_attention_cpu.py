"""The CPU backends of patch_attention: whole GEMMs, some heads at a time, and PyTorch's flash kernel.

In the first the scores of these heads stay in the cache and are not kept: the backward recomputes them. PyTorch's
kernel uses tile instructions (AMX) but not AVX512-BF16, where GEMMs are the faster way; its backward in bfloat16 is
slower than GEMMs on both, so long as the scores of a head fit the cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ipt_fast.ops import _common

# Of the heads worked on at once, for each thread: 2 MB of bfloat16, about a core's share of the cache.
_SCORES = 1 << 20


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return the view [B, H, N, d] of [B, N, D]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def empty_gradients(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a backward fills: for N == M dqkv [B, N, 3D] and nothing, otherwise dq [B, N, D], dkv [B, M, 2D]."""
    (B, N, D), M = q.shape, k.shape[1]
    first, second = ((B, N, 3 * D), (0,)) if N == M else ((B, N, D), (B, M, 2 * D))
    return q.new_empty(first), q.new_empty(second)


def unpack_gradients(first: Tensor, second: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """Return dq, dk and dv as views of what a backward returns."""
    if q.shape[1] == k.shape[1]:
        return first.chunk(3, dim=-1)
    return first, *second.chunk(2, dim=-1)


def with_embeds(q: Tensor, k: Tensor, q_embed: Tensor | None, k_embed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return q and k with what is to be added to each image's."""
    return q if q_embed is None else q + q_embed, k if k_embed is None else k + k_embed


def _parts(num_heads: int, scores_per_head: int, *tensors: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield some heads, and views [images, heads, N, d] of every [B, N, D]: some images, or some heads of one."""
    at_once = max(1, _SCORES * torch.get_num_threads() // scores_per_head)
    images, heads = max(1, at_once // num_heads), min(num_heads, at_once)
    for start in range(0, len(tensors[0]), images):
        split = [split_heads(x[start : start + images], num_heads) for x in tensors]
        for head in range(0, num_heads, heads):
            part = slice(head, head + heads)
            yield part, [x[:, part] for x in split]


def _flat(x: Tensor, embed: Tensor | None = None) -> Tensor:
    """Return [images heads, N, d], with ``embed`` [heads, N, d] added on the way."""
    if embed is None:
        return x.reshape(-1, *x.shape[2:])
    return torch.add(x, embed, out=x.new_empty(x.shape)).flatten(0, 1)


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    if scale == 0:  # baddbmm would leave its memory as it found it in 16 bits
        return torch.bmm(a, b) * scale
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)  # beta=0 ignores the first


def bmm_forward(q, k, v, q_embed, k_embed, num_heads, scale):
    """Compute attention by GEMMs: q [B, N, D], k and v [B, M, D], any strides -> out [B, N, D] and no lse."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    embeds = [None if e is None else e.unflatten(-1, (num_heads, -1)).transpose(0, 1) for e in (q_embed, k_embed)]
    for heads, (o, q_part, k_part, v_part) in _parts(num_heads, q.shape[1] * k.shape[1], out, q, k, v):
        own = [None if e is None else e[heads] for e in embeds]
        a, b = _flat(q_part, own[0]), _flat(k_part, own[1])  # [h, N, d], [h, M, d]
        p = torch.softmax(_scaled_bmm(a, b.mT, scale), -1)  # [h, N, M]
        o.copy_(torch.bmm(p, _flat(v_part)).view(o.shape))
    return out, q.new_empty(q.shape[0], num_heads, 0)


def bmm_backward(grad, q, k, v, q_embed, k_embed, out, lse, num_heads, scale):
    """Return the gradients of q, k and v for ``grad`` [B, N, D], packed as patch_attention's backward returns them."""
    q, k = with_embeds(q, k, q_embed, k_embed)
    first, second = empty_gradients(q, k)
    targets = unpack_gradients(first, second, q, k)
    for _, (*gqkv, da, db, dc) in _parts(num_heads, q.shape[1] * k.shape[1], grad, q, k, v, *targets):
        g, a, b, c = (_flat(x) for x in gqkv)
        p = torch.softmax(_scaled_bmm(a, b.mT, scale), -1)  # [h, N, M]
        dc.copy_(torch.bmm(p.mT, g).view(dc.shape))
        ds = torch.ops.aten._softmax_backward_data(torch.bmm(g, c.mT), p, -1, p.dtype)  # p (dp - sum of p dp)
        da.copy_(_scaled_bmm(ds, b, scale).view(da.shape))
        db.copy_(_scaled_bmm(ds.mT, a, scale).view(db.shape))
    return first, second


def _dense_rows(x: Tensor) -> Tensor:
    # The kernels step through a row by one and do not check; rows may lie any distance apart.
    return x if x.stride(-1) == 1 else x.contiguous()


def flash_forward(q, k, v, q_embed, k_embed, num_heads, scale):
    """Compute attention by PyTorch's flash kernel: as ``bmm_forward``, with lse [B, H, N]."""
    dense = [_dense_rows(x) for x in (*with_embeds(q, k, q_embed, k_embed), v)]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(split_heads(x, num_heads) for x in dense), 0.0, False, scale=scale
    )
    out, lse = out.transpose(1, 2).flatten(2).contiguous(), lse.contiguous()  # [B, N, D], [B, H, N]
    # The kernel gives zeros where the scores of a row are nan, as it does where all are masked, and marks inf so.
    doubtful = lse.isinf() | (lse == 0)
    if doubtful.any():
        exact, _ = bmm_forward(q, k, v, q_embed, k_embed, num_heads, scale)
        bad = doubtful & split_heads(exact, num_heads).isnan().any(-1)  # [B, H, N]
        split_heads(out, num_heads).masked_fill_(bad[..., None], torch.nan)
        lse.masked_fill_(bad, torch.nan)
    return out, lse


def flash_backward(grad, q, k, v, q_embed, k_embed, out, lse, num_heads, scale):
    """Return gradients for ``flash_forward``, by PyTorch's kernel or by GEMMs: as ``bmm_backward``."""
    if q.dtype == torch.bfloat16 and _common.has_fast_bf16() and q.shape[1] * k.shape[1] <= _SCORES:
        return bmm_backward(grad, q, k, v, q_embed, k_embed, out, lse, num_heads, scale)
    dense = [_dense_rows(x) for x in (grad, *with_embeds(q, k, q_embed, k_embed), v, out)]
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(split_heads(x, num_heads) for x in dense), lse, 0.0, False, scale=scale
    )
    dq, dk, dv = (x.transpose(1, 2).flatten(2) for x in grads)  # [B, N, D], twice [B, M, D]
    if q.shape[1] == k.shape[1]:
        return torch.cat([dq, dk, dv], -1), q.new_empty(0)
    return dq.contiguous(), torch.cat([dk, dv], -1)
