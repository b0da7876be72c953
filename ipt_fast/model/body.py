"""The body: features -> patches -> encoder -> decoder with the task embedding -> features."""

import torch
from torch import Tensor, nn

from ipt_fast.model.blocks import Decoder, Encoder
from ipt_fast.model.config import IPTConfig
from ipt_fast.model.feed_forward import feed_forward


def to_tokens(x: Tensor, p: int) -> Tensor:
    """Features [B, C, S, S] -> tokens [B, N, C p p]: row-major tokens, channel-major inside (c p p + kh p + kw)."""
    B, C, height, width = x.shape
    x = x.reshape(B, C, height // p, p, width // p, p)  # [B, C, rows, p, cols, p]
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, (height // p) * (width // p), C * p * p)  # [B, N, D]


def to_features(tokens: Tensor, p: int, size: int) -> Tensor:
    """The inverse of ``to_tokens`` for a square of ``size`` pixels."""
    B, _, D = tokens.shape
    x = tokens.reshape(B, size // p, size // p, D // (p * p), p, p)  # [B, rows, cols, C, p, p]
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, D // (p * p), size, size)  # [B, C, S, S]


class PositionEncoding(nn.Module):
    """A learned vector for each token. The buffer of indices is in the released files, so it is kept."""

    position_ids: Tensor

    def __init__(self, num_tokens: int, dim: int):
        super().__init__()
        self.pe = nn.Embedding(num_tokens, dim)
        self.register_buffer("position_ids", torch.arange(num_tokens).expand(1, -1).contiguous())


class Body(nn.Module):
    """The transformer between head and tail (``model/ipt.py``, VisionTransformer, of the reference code)."""

    recompute = True

    def __init__(self, config: IPTConfig):
        super().__init__()
        D, N, ffn_dim = config.embed_dim, config.num_tokens, config.ffn_ratio * config.embed_dim
        self.config = config
        if config.mlp:
            self.linear_encoding = nn.Linear(D, D)
            # Index 1 is the reference's dropout, never on; the released keys are 0 and 3.
            self.mlp_head = nn.Sequential(nn.Linear(D, ffn_dim), nn.Identity(), nn.ReLU(), nn.Linear(ffn_dim, D))
        if config.task_embed:
            self.query_embed = nn.Embedding(len(config.tasks), N * D)
        if config.position_embed:
            self.position_encoding = PositionEncoding(N, D)
        self.encoder = Encoder(D, config.num_heads, ffn_dim, config.num_layers)
        self.decoder = Decoder(D, config.num_heads, ffn_dim, config.num_layers, config.memory_norm)

    def task_embedding(self, index: int) -> Tensor | None:
        """E_t [N, D], or None where the network has none."""
        if not self.config.task_embed:
            return None
        return self.query_embed.weight[index].view(self.config.num_tokens, self.config.embed_dim)

    def forward(self, x: Tensor, task_index: int) -> tuple[Tensor, Tensor]:
        """Features [B, n_feats, S, S] -> (features of the same shape, contrastive features [B, N, D])."""
        p, size = self.config.patch_dim, self.config.patch_size
        x = to_tokens(x, p)  # [B, N, D]
        if self.config.mlp:
            x = self.linear_encoding(x) + x
        if self.config.position_embed:
            x = x + self.position_encoding.pe.weight.to(x.dtype)
        x = self.encoder(x)
        E = self.task_embedding(task_index)
        x = decoded = self.decoder(x, x, E)
        if self.config.mlp:
            x = feed_forward(x, None, self.mlp_head[0], self.mlp_head[3], self.recompute) + x
        feats = decoded if self.config.features_from == "decoder" else x
        return to_features(x, p, size), feats
