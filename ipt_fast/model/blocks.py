"""The transformer's layers. Pre-norm; no biases in attention; parameter names are the released ones.

Shapes: B images, N tokens, D embedding. ``E`` is a task embedding [N, D], the same for every image and layer.

For the backward a layer keeps its inputs, the packed projections and the attention's output. The normalised tokens are
made again, and so is the hidden layer of the feed-forward network, four times as wide as a token, unless ``recompute``
is False (bench/notes/block.md).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.model.feed_forward import feed_forward
from ipt_fast.model.memory_projection import MemoryProjection
from ipt_fast.model.norm import LayerNorm
from ipt_fast.model.normed_linear import normed_linear
from ipt_fast.model.packed_linear import is_plain, linear
from ipt_fast.ops import patch_attention


class Attention(nn.Module):
    """Multi-head attention with one packed projection and no biases.

    The task embedding is folded in after the projection: W(x + E) = Wx + WE, and WE is [N, D] for the whole batch,
    so no [B, N, D] tensor with the embedding added exists.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(Tensor(3 * dim, dim))  # rows: q, k, v
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, norm: nn.Module, E: Tensor | None = None) -> Tensor:
        """Self-attention: y = norm(x), q = k = y + E, v = y. x [B, N, D], E [N, D] or None -> [B, N, D]."""
        packed = normed_linear(x, norm, self.in_proj_weight)
        q, k, v = packed.chunk(3, dim=-1)  # views of [B, N, 3D]
        q_embed = k_embed = None
        if E is not None:
            q_embed, k_embed = F.linear(E, self.in_proj_weight[: 2 * E.shape[-1]]).chunk(2, dim=-1)  # [N, D] each
        out = patch_attention(q, k, v, num_heads=self.num_heads, q_embed=q_embed, k_embed=k_embed)
        return self._project(out)

    def cross(self, x: Tensor, norm: nn.Module, memory: tuple[Tensor, Tensor], E: Tensor | None = None) -> Tensor:
        """Cross-attention: q = norm(x) + E; ``memory`` is what ``keys_values`` made of it."""
        D = x.shape[-1]
        q = normed_linear(x, norm, self.in_proj_weight[:D])  # [B, N, D]
        k, v = memory
        q_embed = None if E is None else F.linear(E, self.in_proj_weight[:D])  # [N, D]
        return self._project(patch_attention(q, k, v, num_heads=self.num_heads, q_embed=q_embed))

    def _project(self, out: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not is_plain(self.out_proj):
            return self.out_proj(out)
        return linear(out, self.out_proj.weight, self.out_proj.bias)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """k and v of the memory [B, M, D] for ``cross``: views of [B, M, 2D]."""
        k, v = F.linear(memory, self.in_proj_weight[memory.shape[-1] :]).chunk(2, dim=-1)
        return k, v


class EncoderLayer(nn.Module):
    """x += MHA(LN1 x); x += FFN(LN2 x)."""

    recompute = True

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        # The reference: kaiming here, xavier in the decoder.
        nn.init.kaiming_uniform_(self.self_attn.in_proj_weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        x = x + self.self_attn(x, self.norm1)
        return x + feed_forward(x, self.norm2, self.linear1, self.linear2, self.recompute)


class DecoderLayer(nn.Module):
    """z += MHA(LN1 z, E); z += MHA(LN2 z, memory, E); z += FFN(LN3 z)."""

    recompute = True

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.multihead_attn = Attention(dim, num_heads)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.norm3 = LayerNorm(dim)
        nn.init.xavier_uniform_(self.self_attn.in_proj_weight)
        nn.init.xavier_uniform_(self.multihead_attn.in_proj_weight)

    def forward(
        self, z: Tensor, memory: Tensor, E: Tensor | None, keys_values: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """z [B, N, D], memory [B, N, D], E [N, D] or None -> [B, N, D]. ``keys_values``: of this layer, if made."""
        z = z + self.self_attn(z, self.norm1, E)
        z = z + self.multihead_attn.cross(z, self.norm2, keys_values or self.multihead_attn.keys_values(memory), E)
        return z + feed_forward(z, self.norm3, self.linear1, self.linear2, self.recompute)


class Encoder(nn.Module):
    """num_layers encoder layers, each drawn on its own; no final norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        for layer in self.layers:
            x = layer(x)
        return x


class Decoder(nn.Module):
    """num_layers decoder layers over one memory; no final norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, num_layers: int, memory_norm: bool):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers))
        # Eq. 2 normalises z0. The affine part is absorbed by each layer's own projection, so one norm serves all.
        self.memory_norm = LayerNorm(dim) if memory_norm else nn.Identity()
        self._packed = MemoryProjection()

    def forward(self, z: Tensor, memory: Tensor, E: Tensor | None) -> Tensor:
        """z and memory [B, N, D], E [N, D] or None -> [B, N, D]."""
        memory = self.memory_norm(memory)
        weights = [layer.get_parameter("multihead_attn.in_proj_weight") for layer in self.layers]
        keys_values = self._packed(weights, memory)
        for layer, made in zip(self.layers, keys_values, strict=True):
            z = layer(z, memory, E, made)
        return z
