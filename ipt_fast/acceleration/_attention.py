"""nn.MultiheadAttention with embeddings added to queries and keys, as DETR and IPT's reference code call it.

There ``q = k = x + pos`` and ``value = x``, so the module's own fast path (q is k is v) never serves, and as its
callers take ``[0]`` of the result, the weights that it returns by default are computed for nobody.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.acceleration._pending import pending, traced
from ipt_fast.acceleration._swap import Report, Swapped, swap
from ipt_fast.ops._common import any_requires_grad
from ipt_fast.ops.patch_attention import patch_attention


class EmbeddedAttention(Swapped):
    """Runs patch_attention where the result is the same, and the module's own forward everywhere else."""

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
        """As in nn.MultiheadAttention; weights that are asked for are computed when they are looked at."""
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        if masked or not _serves(self, query, key, value, need_weights):
            return super().forward(  # type: ignore[misc]
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        out = _attend(self, query, key, value)  # type: ignore[arg-type]
        if not need_weights:
            return out, None
        on, cast = torch.is_autocast_enabled(query.device.type), torch.get_autocast_dtype(query.device.type)

        def weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with torch.autocast(q.device.type, dtype=cast, enabled=on):
                return nn.MultiheadAttention.forward(self, q, k, v, average_attn_weights=average_attn_weights)[1]  # type: ignore[arg-type,return-value]

        batch, length = (0, 1) if self.batch_first else (1, 0)  # type: ignore[attr-defined]
        heads = () if average_attn_weights else (self.num_heads,)  # type: ignore[attr-defined]
        shape = (query.shape[batch], *heads, query.shape[length], key.shape[length])
        return out, pending(shape, out.dtype, weights, [query, key, value])


def _serves(module, query, key, value, need_weights: bool) -> bool:
    inputs = (query, key, value)
    if any(type(t) is not Tensor or t.is_nested or t.dim() != 3 for t in inputs) or (query is key and key is value):
        return False
    if module.training and module.dropout > 0:
        return False
    on = torch.is_autocast_enabled(query.device.type)
    if any(t.dtype != (query.dtype if on else module.in_proj_weight.dtype) for t in inputs):
        return False
    batch = 0 if module.batch_first else 1
    if any(t.shape[2] != module.embed_dim or t.shape[batch] != query.shape[batch] or not t.numel() for t in inputs):
        return False
    if key.shape != value.shape:
        return False
    # The weights have a gradient of their own, and a compiler would have to compute them.
    return not need_weights or not (traced() or any_requires_grad([*inputs, *module.parameters()]))


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


def _why_not(module: nn.MultiheadAttention) -> str | None:
    if type(module) is not nn.MultiheadAttention:
        return f"is a {type(module).__name__}, not a plain MultiheadAttention"
    if "forward" in module.__dict__:
        return "has a forward of its own"
    if not module._qkv_same_embed_dim:
        return "has keys or values of another size than its queries"
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return "adds a key and value of its own (add_bias_kv or add_zero_attn)"
    if any(h for h in (module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return "has hooks"
    if module._forward_hooks:
        return "has forward hooks"
    return None


def swap_attention(network: nn.Module, report: Report) -> list[nn.Module]:
    """Swap every MultiheadAttention that can be; returns what was swapped."""
    swapped: list[nn.Module] = []
    for path, module in network.named_modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        if isinstance(module, EmbeddedAttention):
            report.already.append(path)
        elif reason := _why_not(module):
            report.refused.append((path, reason))
        else:
            swap(module, EmbeddedAttention)
            swapped.append(module)
            exceptions = "masks, q = k = v" + (", training with dropout" if module.dropout else "")
            report.swapped.append(
                (path, f"attention by patch_attention; its own forward with {exceptions}, or weights with gradients")
            )
    return swapped
