"""Networks as people have them, written from their published structure, for what ``accelerate`` swaps.

Tails and attention are as published; the bodies are shortened, and SwinIR's has no windows.
"""

import math

import torch
from torch import nn


class Block(nn.Module):
    """A residual block, the same for all of them."""

    def __init__(self, n):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.ReLU(True), nn.Conv2d(n, n, 3, padding=1))

    def forward(self, x):
        return x + self.body(x)


class Upsampler(nn.Sequential):
    """EDSR's, RCAN's and BasicSR's: conv, PixelShuffle once or twice; an activation after each on demand."""

    def __init__(self, scale, n, act=False):
        stages = []
        for r in [3] if scale == 3 else [2] * int(math.log2(scale)):
            stages += [nn.Conv2d(n, n * r * r, 3, padding=1), nn.PixelShuffle(r), *([nn.ReLU(True)] if act else [])]
        super().__init__(*stages)


Upsample = Upsampler  # its name in BasicSR, and so in SwinIR and HAT


class EDSR(nn.Module):
    """EDSR-PyTorch and RCAN: head, body, tail = Sequential(Upsampler, conv)."""

    def __init__(self, scale=2, n=8, act=False, blocks=2):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, n, 3, padding=1))
        self.body = nn.Sequential(*(Block(n) for _ in range(blocks)), nn.Conv2d(n, n, 3, padding=1))
        self.tail = nn.Sequential(Upsampler(scale, n, act), nn.Conv2d(n, 3, 3, padding=1))

    def forward(self, x):
        x = self.head(x)
        return self.tail(self.body(x) + x)


class SwinIR(nn.Module):
    """SwinIR classical, HAT and others of BasicSR: the tail is called as two attributes, in one branch of several."""

    def __init__(self, scale=2, dim=12, num_feat=8, upsampler="pixelshuffle"):
        super().__init__()
        self.upsampler = upsampler
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, 1, 1)
        self.norm = nn.GroupNorm(1, dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, 1, 1)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, num_feat, 3, 1, 1), nn.LeakyReLU(inplace=True))
        self.upsample = Upsample(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, 1, 1)

    def forward(self, x):
        x = self.conv_first(x - self.mean)
        x = self.conv_after_body(self.norm(x)) + x
        x = self.conv_before_upsample(x)
        if self.upsampler == "pixelshuffle":
            x = self.conv_last(self.upsample(x))
        elif self.upsampler == "seen":  # the result of upsample serves twice
            up = self.upsample(x)
            x = self.conv_last(up) + up.mean(1, keepdim=True)
        elif self.upsampler == "activated":
            x = self.conv_last(torch.relu(self.upsample(x)))
        elif self.upsampler == "written":
            up = self.upsample(x)
            up.mul_(2)
            x = self.conv_last(up)
        elif self.upsampler == "pixelshuffledirect":  # there upsample is one step that gives the image
            x = self.upsample(x)
        return x + self.mean


class DetrDecoderLayer(nn.Module):
    """DETR's TransformerDecoderLayer, post-norm."""

    def __init__(self, d_model=32, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=False, bias=True):
        super().__init__()
        options = {"dropout": dropout, "batch_first": batch_first, "bias": bias}
        self.self_attn = nn.MultiheadAttention(d_model, nhead, **options)
        self.multihead_attn = nn.MultiheadAttention(d_model, nhead, **options)
        self.ffn = nn.Sequential(nn.Linear(d_model, dim_feedforward), nn.ReLU(), nn.Linear(dim_feedforward, d_model))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def with_pos_embed(tensor, pos):
        return tensor if pos is None else tensor + pos

    def forward(self, tgt, memory, memory_key_padding_mask=None, pos=None, query_pos=None, tgt_mask=None):
        q = k = self.with_pos_embed(tgt, query_pos)
        tgt2 = self.self_attn(q, k, value=tgt, attn_mask=tgt_mask)[0]
        tgt = self.norm1(tgt + self.dropout(tgt2))
        query, key = self.with_pos_embed(tgt, query_pos), self.with_pos_embed(memory, pos)
        tgt2 = self.multihead_attn(query, key, value=memory, key_padding_mask=memory_key_padding_mask)[0]
        tgt = self.norm2(tgt + self.dropout(tgt2))
        return self.norm3(tgt + self.dropout(self.ffn(tgt)))
