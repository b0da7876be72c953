"""nn.MultiheadAttention with embeddings added to queries and keys, as DETR and IPT's reference code call it.

There ``q = k = x + pos`` and ``value = x``, so the module's own fast path (q is k is v) never serves.
"""

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.acceleration._plain import Swapped, plain_tensors, reason_not_plain, traced
from ipt_fast.ops.patch_attention import patch_attention


class EmbeddedAttention(Swapped, nn.MultiheadAttention):
    """Runs patch_attention where nobody asks for the weights, and the module's own forward everywhere else."""

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        """As in nn.MultiheadAttention."""
        args = (query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        for proxy in (query, key, value):
            if isinstance(proxy, torch.fx.Proxy):  # one node of the graph, as nn.MultiheadAttention is
                tracer: Any = proxy.tracer
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, {})
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        if need_weights or masked or not _serves(self, query, key, value):
            return super().forward(*args)
        return _attend(self, query, key, value), None


def _serves(module: nn.MultiheadAttention, query: Any, key: Any, value: Any) -> bool:
    if type(module) is not EmbeddedAttention or traced(query) or (query is key and key is value):
        return False
    if module.training and module.dropout > 0:
        return False
    weights = [module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias]
    if not plain_tensors((query, key, value), weights, dims=3):
        return False
    batch = 0 if module.batch_first else 1
    same = all(t.shape[2] == module.embed_dim and t.shape[batch] == query.shape[batch] for t in (query, key))
    return same and key.shape == value.shape


def _attend(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    D = module.embed_dim
    weight, bias = module.in_proj_weight, module.in_proj_bias

    def project(x: Tensor, first: int, last: int) -> Tensor:  # rows first D to last D of the packed projection
        y = F.linear(x, weight[first * D : last * D], None if bias is None else bias[first * D : last * D])
        return y if module.batch_first else y.transpose(0, 1)  # [B, N, (last - first) D]

    if query is key:
        q, k = project(query, 0, 2).chunk(2, -1)
        v = project(value, 2, 3)
    elif key is value:
        q = project(query, 0, 1)
        k, v = project(key, 1, 3).chunk(2, -1)
    else:
        q, k, v = project(query, 0, 1), project(key, 1, 2), project(value, 2, 3)
    out = patch_attention(q, k, v, num_heads=module.num_heads)  # [B, N, D]
    if not module.batch_first:
        out = out.transpose(0, 1).contiguous()
    return F.linear(out, module.out_proj.weight, module.out_proj.bias)


def reason_not_served(module: nn.MultiheadAttention) -> str | None:
    """Return why an attention is left alone, or None."""
    if reason := reason_not_plain(module, nn.MultiheadAttention):
        return reason
    if not module._qkv_same_embed_dim:
        return "has keys or values of another size than its queries"
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return "adds a key and value of its own (add_bias_kv or add_zero_attn)"
    return None
