"""The same network written plainly: nn.MultiheadAttention, nn.LayerNorm, unfold and fold, chains of convolutions.

The contender of the whole-model benchmarks. Every layer is the one that PyTorch offers for the purpose, called as its
documentation says (batch first, no attention weights asked for, so that its own fused attention serves it). It loads
the state dict of ``ipt_fast.IPT`` and gives the same output. ``need_weights=True`` is the released code's way of
calling attention: the probabilities are made, averaged over heads, and thrown away.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.model import IPTConfig
from ipt_fast.tasks import get_task


class ResBlock(nn.Module):
    """Two 5x5 convolutions and a shortcut."""

    def __init__(self, n_feats: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_feats, n_feats, 5, padding=2), nn.ReLU(), nn.Conv2d(n_feats, n_feats, 5, padding=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def head(n_feats: int) -> nn.Sequential:
    """Image -> features."""
    return nn.Sequential(nn.Conv2d(3, n_feats, 3, padding=1), ResBlock(n_feats), ResBlock(n_feats))


def tail(n_feats: int, scale: int) -> nn.Sequential:
    """Features -> image: upsampling by pixel shuffle, then a 3x3 convolution."""
    upsample: list[nn.Module] = []
    for r in (2, 2) if scale == 4 else (scale,) if scale > 1 else ():
        upsample += [nn.Conv2d(n_feats, n_feats * r * r, 3, padding=1), nn.PixelShuffle(r)]
    return nn.Sequential(nn.Sequential(*upsample), nn.Conv2d(n_feats, 3, 3, padding=1))


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, need_weights: bool):
        super().__init__()
        self.need_weights = need_weights
        self.self_attn = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y, need_weights=self.need_weights)[0]
        return x + self.linear2(F.relu(self.linear1(self.norm2(x))))


class DecoderLayer(EncoderLayer):
    """Pre-norm self-attention, cross-attention and feed-forward; the task embedding is added to q and k."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, need_weights: bool):
        super().__init__(dim, num_heads, ffn_dim, need_weights)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, z: Tensor, memory: Tensor, E: Tensor | float) -> Tensor:  # type: ignore[override]
        y = self.norm1(z)
        q = k = y + E  # [B, N, D]
        z = z + self.self_attn(q, k, y, need_weights=self.need_weights)[0]
        q = self.norm2(z) + E  # [B, N, D]
        z = z + self.multihead_attn(q, memory, memory, need_weights=self.need_weights)[0]
        return z + self.linear2(F.relu(self.linear1(self.norm3(z))))


class Transformer(nn.Module):
    """Features -> tokens -> encoder, decoder -> features."""

    def __init__(self, config: IPTConfig, need_weights: bool):
        super().__init__()
        D, N, ffn_dim = config.embed_dim, config.num_tokens, config.ffn_ratio * config.embed_dim
        layer = (D, config.num_heads, ffn_dim, need_weights)
        self.config = config
        if config.mlp:
            self.linear_encoding = nn.Linear(D, D)
            self.mlp_head = nn.Sequential(nn.Linear(D, ffn_dim), nn.Identity(), nn.ReLU(), nn.Linear(ffn_dim, D))
        if config.task_embed:
            self.query_embed = nn.Embedding(len(config.tasks), N * D)
        if config.position_embed:
            self.position_encoding = nn.Module()
            self.position_encoding.pe = nn.Embedding(N, D)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(EncoderLayer(*layer) for _ in range(config.num_layers))
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(DecoderLayer(*layer) for _ in range(config.num_layers))
        self.decoder.memory_norm = nn.LayerNorm(D) if config.memory_norm else nn.Identity()

    def forward(self, x: Tensor, task_index: int) -> tuple[Tensor, Tensor]:
        config, p = self.config, self.config.patch_dim
        x = F.unfold(x, p, stride=p).transpose(1, 2)  # [B, N, D]
        if config.mlp:
            x = self.linear_encoding(x) + x
        if config.position_embed:
            x = x + self.position_encoding.pe.weight
        for layer in self.encoder.layers:
            x = layer(x)
        E = self.query_embed.weight[task_index].view(config.num_tokens, -1) if config.task_embed else 0.0
        memory = self.decoder.memory_norm(x)
        for layer in self.decoder.layers:
            x = layer(x, memory, E)
        decoded = x
        if config.mlp:
            x = self.mlp_head(x) + x
        feats = decoded if config.features_from == "decoder" else x
        return F.fold(x.transpose(1, 2), config.patch_size, p, stride=p), feats  # [B, n_feats, S, S]


class PlainIPT(nn.Module):
    """``model(x, task)`` as ``ipt_fast.IPT``: x [B, 3, S, S] float, pixels 0..255 -> [B, 3, rS, rS]."""

    def __init__(self, config: IPTConfig | None = None, need_weights: bool = False):
        super().__init__()
        self.config = config = config or IPTConfig()
        # Frozen; their weights come with the state dict.
        self.sub_mean, self.add_mean = (nn.Conv2d(3, 3, 1).requires_grad_(False) for _ in range(2))
        self.head = nn.ModuleList(head(config.n_feats) for _ in config.tasks)
        self.body = Transformer(config, need_weights)
        self.tail = nn.ModuleList(tail(config.n_feats, get_task(task).scale) for task in config.tasks)

    def task_index(self, task: str) -> int:
        """Return the place of ``task`` among the network's tasks."""
        return self.config.tasks.index(task)

    def forward(self, x: Tensor, task: str, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        index = self.task_index(task)
        x = self.head[index](self.sub_mean(x))  # [B, n_feats, S, S]
        y, feats = self.body(x, index)
        y = self.add_mean(self.tail[index](y + x))  # [B, 3, rS, rS]
        return (y, feats) if return_features else y


def plain_copy(model: nn.Module, need_weights: bool = False) -> PlainIPT:
    """Return the plain network with the configuration, weights, device and dtype of an ``ipt_fast.IPT``."""
    weights = dict(model.state_dict())
    weights.pop("body.position_encoding.position_ids", None)  # a constant that the plain network has no use for
    plain = PlainIPT(model.config, need_weights)
    plain.load_state_dict(weights)
    return plain.to(next(model.parameters())).train(model.training)
