"""Attention with additive per-position query and key embeddings (IPT's task embedding, DETR's query_pos)."""

import torch
from torch import Tensor


def patch_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    q_embed: Tensor | None,
    k_embed: Tensor | None,
    scale: float,
) -> Tensor:
    """softmax((q + q_embed) (k + k_embed)^T * scale) v per head, written as it reads; the oracle of every backend."""
    B, N, D = q.shape
    M = k.shape[1]
    q = q if q_embed is None else q + q_embed
    k = k if k_embed is None else k + k_embed
    q = q.reshape(B, N, num_heads, D // num_heads).transpose(1, 2)  # [B, H, N, d]
    k = k.reshape(B, M, num_heads, D // num_heads).transpose(1, 2)  # [B, H, M, d]
    v = v.reshape(B, M, num_heads, D // num_heads).transpose(1, 2)  # [B, H, M, d]
    weights = torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1)  # [B, H, N, M]
    return (weights @ v).transpose(1, 2).reshape(B, N, D)


def patch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    q_embed: Tensor | None = None,
    k_embed: Tensor | None = None,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """Multi-head attention where ``q_embed`` [N, D] and ``k_embed`` [M, D] are added to every image's q and k."""
    scale = (q.shape[-1] // num_heads) ** -0.5 if scale is None else scale
    return patch_attention_reference(q, k, v, num_heads, q_embed, k_embed, scale)
