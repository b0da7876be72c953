"""The transformer's layers. Pre-norm; no biases in attention; parameter names are the released ones.

Shapes: B images, N tokens, M memory tokens, D embedding. ``E`` is a task embedding [N, D], the same for every image.

For the backward a layer keeps its inputs, the packed projections and the attention's output. The normalised tokens are
recomputed, and so is the hidden activation of the feed-forward network, unless ``recompute`` is False
(bench/notes/block.md). In training the parts of a layer are joined as ``blocks.py`` says.

``norm1`` to ``norm3``, ``linear1`` and ``linear2`` only hold the parameters of a fused op, as ``out_proj`` of PyTorch's
``MultiheadAttention`` does: hooks on them never fire; hooks on ``self_attn``, ``multihead_attn`` and ``ffn`` do. One
that is no longer what it was built as (a LoRA wrapper, a quantized or parametrized layer, a weight that a hook makes)
is called as a module.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.model.blocks import Way, is_called_by_nobody_else, normed_attention, normed_ffn, project, records, way
from ipt_fast.ops import ffn, layernorm_linear, patch_attention
from ipt_fast.ops._common import autocast_off


class LayerNorm(nn.LayerNorm):
    """Statistics in float32, the result in the dtype of x.

    Autocast on CUDA would make a 16-bit x float32 and cast what comes out back for the GEMM behind it: ten passes over
    16-bit memory where two do.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., D]."""
        if x.dtype not in (torch.float16, torch.bfloat16):
            return super().forward(x)
        with autocast_off(x):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether an op may read the parameters of a module: nobody has replaced, parametrized or pruned it."""
    parameters = module._parameters  # torch 2.10 cannot trace a set <= their keys
    return type(module) is kind and "weight" in parameters and "bias" in parameters


def normed_linear(x: Tensor, norm: nn.Module, weight: Tensor) -> Tensor:
    """Return norm(x) W^T, [B, N, D_out]."""
    if is_plain(norm, LayerNorm):
        assert isinstance(norm, LayerNorm)
        return layernorm_linear(x, norm.weight, norm.bias, weight, eps=norm.eps)
    return F.linear(norm(x), weight)


class Attention(nn.Module):
    """Multi-head attention with one packed projection and no biases.

    The task embedding is folded in after the projection: W(x + E) = Wx + WE, and WE is [N, D] for the whole batch,
    so no [B, N, D] tensor with the embedding added exists.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # rows: q, k, v
        self.out_proj = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, norm: nn.Module, E: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """Attend from norm(x) + E to itself (k = norm(x) + E, v = norm(x)), or to ``memory`` (k = v = memory).

        x [B, N, D], E [N, D] or None, memory [B, M, D] or None -> [B, N, D].
        """
        weight, D = self.in_proj_weight, x.shape[-1]
        k_embed = None
        if memory is None:
            q, k, v = normed_linear(x, norm, weight).chunk(3, dim=-1)  # views of [B, N, 3D]
            q_embed = None if E is None else F.linear(E, weight[: 2 * D])  # [N, 2D]
            if q_embed is not None:
                q_embed, k_embed = q_embed.chunk(2, dim=-1)  # [N, D] each
        else:
            q = normed_linear(x, norm, weight[:D])  # [B, N, D]
            k, v = F.linear(memory, weight[D:]).chunk(2, dim=-1)  # views of [B, M, 2D]
            q_embed = None if E is None else F.linear(E, weight[:D])  # [N, D]
        return self.out_proj(patch_attention(q, k, v, num_heads=self.num_heads, q_embed=q_embed, k_embed=k_embed))


class FeedForward(nn.Module):
    """A feed-forward network whose norm and linear layers belong to the layer around it, for the released names."""

    recompute = True

    def forward(self, x: Tensor, norm: nn.Module, linear1: nn.Module, linear2: nn.Module) -> Tensor:
        """Return linear2(relu(linear1(norm(x)))): [B, N, D] -> [B, N, D]."""
        if not (is_plain(norm, LayerNorm) and is_plain(linear1, nn.Linear) and is_plain(linear2, nn.Linear)):
            return linear2(F.relu(linear1(norm(x))))
        assert isinstance(norm, LayerNorm) and isinstance(linear1, nn.Linear) and isinstance(linear2, nn.Linear)
        weights = (norm.weight, norm.bias, linear1.weight, linear1.bias, linear2.weight, linear2.bias)
        return ffn(x, *weights, eps=norm.eps, recompute=self.recompute)


class MLPHead(nn.Sequential):
    """linear, nothing, ReLU, linear, as one op. Index 1 is the reference's dropout, never on; its keys are 0 and 3."""

    recompute = True

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__(nn.Linear(dim, ffn_dim), nn.Identity(), nn.ReLU(), nn.Linear(ffn_dim, dim))

    def is_built_in(self) -> bool:
        """Return whether all four modules are still what this was built with."""
        linears = is_plain(self[0], nn.Linear) and is_plain(self[3], nn.Linear)
        return linears and type(self[1]) is nn.Identity and type(self[2]) is nn.ReLU and len(self) == 4

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        if not self.is_built_in():
            return super().forward(x)
        linear1, linear2 = self[0], self[3]
        assert isinstance(linear1, nn.Linear) and isinstance(linear2, nn.Linear)
        weights = (linear1.weight, linear1.bias, linear2.weight, linear2.bias)
        return ffn(x, None, None, *weights, recompute=self.recompute)


_Layer = TypeVar("_Layer", "EncoderLayer", "DecoderLayer")


def _way(layer: "EncoderLayer | DecoderLayer", x: Tensor, attentions: Sequence[Attention]) -> Way | None:
    """Return how a layer is to be trained by branches (``blocks``), or None: a part is not as built, or has hooks."""
    if not records(x):
        return None
    norms = [module for name, module in layer.named_children() if name.startswith("norm")]
    linears = layer.linear1, layer.linear2
    built = all(is_plain(norm, LayerNorm) for norm in norms) and type(layer.ffn) is FeedForward
    built = built and all(is_plain(linear, nn.Linear) and linear.bias is not None for linear in linears)
    built = built and all(type(a) is Attention and "in_proj_weight" in a._parameters for a in attentions)
    if not built or not is_called_by_nobody_else(layer.ffn, *attentions):
        return None
    weights = [a.in_proj_weight for a in attentions] + [linear.weight for linear in linears]
    return way(x, attentions[0].num_heads, layer.ffn.recompute, *weights)


def project_all(E: Tensor | None, layers: Sequence["DecoderLayer"]) -> list[Sequence[Tensor]]:
    """Return what each layer adds to q and k [N, 2D] of its own tokens, and to q [N, D] of the memory's; or nothing."""
    if E is None or not layers:
        return [()] * len(layers)
    weights = [a.in_proj_weight for layer in layers for a in (layer.self_attn, layer.multihead_attn)]
    parts = project(E, weights, [2 * E.shape[-1], E.shape[-1]] * len(layers))
    return [parts[i : i + 2] for i in range(0, len(parts), 2)]


def by_branches(layers: Iterable[nn.Module], kind: type[_Layer], x: Tensor) -> dict[_Layer, Way]:
    """Return those of the layers that are trained by branches and called by nobody else, and how."""
    if not records(x):
        return {}
    alone = (layer for layer in layers if type(layer) is kind and is_called_by_nobody_else(layer))
    return {layer: way for layer in alone if (way := layer.way(x))}


class EncoderLayer(nn.Module):
    """x += MHA(LN1 x); x += FFN(LN2 x)."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.ffn = FeedForward()

    def way(self, x: Tensor) -> Way | None:
        """Return how the layer is to be trained by branches, or None."""
        return _way(self, x, [self.self_attn])

    def branches(self, way: Way, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the layer of x + branch as stream and branch that add up to it."""
        attention = self.self_attn
        x, branch, _ = normed_attention(way, x, branch, self.norm1, attention.in_proj_weight, attention.num_heads)
        return normed_ffn(way, x, attention.out_proj(branch), self.norm2, self.linear1, self.linear2)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        if way := self.way(x):
            return torch.add(*self.branches(way, x))
        x = x + self.self_attn(x, self.norm1)
        return x + self.ffn(x, self.norm2, self.linear1, self.linear2)


class DecoderLayer(nn.Module):
    """z += MHA(LN1 z, E); z += MHA(LN2 z, memory, E); z += FFN(LN3 z)."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int):
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.multihead_attn = Attention(dim, num_heads)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.norm3 = LayerNorm(dim)
        self.ffn = FeedForward()

    def way(self, z: Tensor) -> Way | None:
        """Return how the layer is to be trained by branches, or None."""
        return _way(self, z, [self.self_attn, self.multihead_attn])

    def branches(
        self, way: Way, z: Tensor, branch: Tensor | None, memory: Tensor, E: Tensor | None, embeds: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer of z + branch as stream and branch that add up to it, and the memory for the next layer.

        ``embeds`` are of ``project_all``.
        """
        own, cross = self.self_attn, self.multihead_attn
        embed, cross_embed = embeds or (None, None)
        z, branch, _ = normed_attention(way, z, branch, self.norm1, own.in_proj_weight, own.num_heads, E, embed)
        branch, weight = own.out_proj(branch), cross.in_proj_weight
        z, branch, passed_on = normed_attention(
            way, z, branch, self.norm2, weight, cross.num_heads, E, cross_embed, memory
        )
        assert passed_on is not None
        return *normed_ffn(way, z, cross.out_proj(branch), self.norm3, self.linear1, self.linear2), passed_on

    def forward(self, z: Tensor, memory: Tensor, E: Tensor | None) -> Tensor:
        """z [B, N, D], memory [B, M, D], E [N, D] or None -> [B, N, D]."""
        if way := self.way(z):
            (embeds,) = project_all(E, [self])
            z, branch, _ = self.branches(way, z, None, memory, E, embeds)
            return z + branch
        z = z + self.self_attn(z, self.norm1, E)
        z = z + self.multihead_attn(z, self.norm2, E, memory)
        return z + self.ffn(z, self.norm3, self.linear1, self.linear2)


class Encoder(nn.Module):
    """num_layers encoder layers; no final norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        ways, branch = by_branches(self.layers, EncoderLayer, x), None
        for layer in self.layers:
            if isinstance(layer, EncoderLayer) and layer in ways:
                x, branch = layer.branches(ways[layer], x, branch)
            else:
                x, branch = layer(x if branch is None else x + branch), None
        return x if branch is None else x + branch


class Decoder(nn.Module):
    """num_layers decoder layers over one memory; no final norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, num_layers: int, memory_norm: bool):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, num_heads, ffn_dim) for _ in range(num_layers))
        # Eq. 2 normalises z0. The affine part is absorbed by each layer's own projection, so one norm serves all.
        self.memory_norm = LayerNorm(dim) if memory_norm else nn.Identity()

    def forward(self, z: Tensor, memory: Tensor, E: Tensor | None) -> Tensor:
        """z [B, N, D], memory [B, M, D], E [N, D] or None -> [B, N, D]."""
        memory = self.memory_norm(memory)
        ways, branch = by_branches(self.layers, DecoderLayer, z), None
        embeds = dict(zip(ways, project_all(E, list(ways)), strict=True))
        handed_on = memory
        for layer in self.layers:
            if isinstance(layer, DecoderLayer) and layer in ways:
                z, branch, handed_on = layer.branches(ways[layer], z, branch, handed_on, E, embeds[layer])
            else:
                z, branch = layer(z if branch is None else z + branch, memory, E), None
        return z if branch is None else z + branch
