"""Networks as people have them, written from their published structure, for what ``accelerate`` swaps.

Tails and attention are as published; the bodies are shortened, and SwinIR's and HAT's have no windows.
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
    """EDSR's and RCAN's: conv, PixelShuffle once or twice; an activation after each on demand."""

    def __init__(self, scale, n, act=False):
        stages = []
        for r in [3] if scale == 3 else [2] * int(math.log2(scale)):
            stages += [nn.Conv2d(n, n * r * r, 3, padding=1), nn.PixelShuffle(r)]
            if act:
                stages.append(nn.ReLU(True))
        super().__init__(*stages)


class EDSR(nn.Module):
    """EDSR-PyTorch: head, body, tail = Sequential(Upsampler, conv)."""

    def __init__(self, scale=2, n=8, act=False, blocks=2):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, n, 3, padding=1))
        self.body = nn.Sequential(*(Block(n) for _ in range(blocks)), nn.Conv2d(n, n, 3, padding=1))
        self.tail = nn.Sequential(Upsampler(scale, n, act), nn.Conv2d(n, 3, 3, padding=1))

    def forward(self, x):
        x = self.head(x)
        return self.tail(self.body(x) + x)


class ChannelAttention(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, 2, 1), nn.ReLU(True), nn.Conv2d(2, n, 1), nn.Sigmoid()
        )

    def forward(self, x):
        return x * self.conv_du(x)


class RCAN(nn.Module):
    """RCAN: the body has channel attention, the tail is a list unpacked into a Sequential."""

    def __init__(self, scale=2, n=8):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, n, 3, padding=1))
        self.body = nn.Sequential(Block(n), ChannelAttention(n), nn.Conv2d(n, n, 3, padding=1))
        modules_tail = [Upsampler(scale, n), nn.Conv2d(n, 3, 3, padding=1)]
        self.tail = nn.Sequential(*modules_tail)

    def forward(self, x):
        x = self.head(x)
        return self.tail(self.body(x) + x)


class Upsample(nn.Sequential):
    """BasicSR's, used by SwinIR and HAT."""

    def __init__(self, scale, num_feat):
        m = []
        for r in [3] if scale == 3 else [2] * int(math.log2(scale)):
            m.append(nn.Conv2d(num_feat, r * r * num_feat, 3, 1, 1))
            m.append(nn.PixelShuffle(r))
        super().__init__(*m)


class SwinIR(nn.Module):
    """SwinIR classical: the tail is called as two attributes, in one branch of three."""

    def __init__(self, scale=2, dim=12, num_feat=8, upsampler="pixelshuffle"):
        super().__init__()
        self.upscale, self.upsampler = scale, upsampler
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, 1, 1)
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, 1, 1)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, num_feat, 3, 1, 1), nn.LeakyReLU(inplace=True))
        self.upsample = Upsample(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, 1, 1)

    def forward_features(self, x):
        B, C, H, W = x.shape
        return self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(B, C, H, W)

    def forward(self, x):
        x = x - self.mean
        if self.upsampler == "pixelshuffle":
            x = self.conv_first(x)
            x = self.conv_after_body(self.forward_features(x)) + x
            x = self.conv_before_upsample(x)
            x = self.conv_last(self.upsample(x))
        elif self.upsampler == "seen":  # the result of upsample serves twice
            x = self.conv_before_upsample(self.conv_first(x))
            up = self.upsample(x)
            x = self.conv_last(up) + up.mean(1, keepdim=True)
        elif self.upsampler == "activated":
            x = self.conv_before_upsample(self.conv_first(x))
            x = self.conv_last(torch.relu(self.upsample(x)))
        elif self.upsampler == "written":
            x = self.conv_before_upsample(self.conv_first(x))
            up = self.upsample(x)
            up.mul_(2)
            up[:, 0] = 1
            x = self.conv_last(up)
        return x + self.mean.repeat(1, 1, 1, 1)


class LBNet(nn.Module):
    """The tail of two attributes in two lines, which many networks have."""

    def __init__(self, scale=2, n=8):
        super().__init__()
        self.conv_first = nn.Conv2d(3, n, 3, 1, 1)
        self.upsample, self.conv_last = Upsample(scale, n), nn.Conv2d(n, 3, 3, 1, 1)

    def forward(self, x):
        base = nn.functional.interpolate(x, scale_factor=2.0)
        x = self.upsample(self.conv_first(x))
        x = self.conv_last(x) + base
        return x


class HAT(SwinIR):
    """HAT and other BasicSR networks: activations of its own, x4, rearranged features before."""

    def __init__(self, scale=4, **kwargs):
        super().__init__(scale, **kwargs)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(12, 8, 3, 1, 1), nn.LeakyReLU(0.01, inplace=True))


class EDT(nn.Module):
    """EDT: heads and tails of each task are ModuleLists, found by name and run by one loop; the tail takes skips."""

    def __init__(self, scales=(2, 3), n=8, dim=12):
        super().__init__()
        self.scales = scales
        self.body = nn.Conv2d(dim, dim, 3, 1, 1)
        for s in scales:
            head = [nn.Conv2d(3, n, 3, 1, 1), Block(n), nn.Conv2d(n, dim, 3, 1, 1)]
            tail = [SkipBlock(dim, n), Upsample(s, n), nn.Conv2d(n, 3, 3, 1, 1)]
            setattr(self, f"head_sr_x{s}", nn.ModuleList(head))
            setattr(self, f"tail_sr_x{s}", nn.ModuleList(tail))

    def forward(self, x):
        outs = []
        for s in self.scales:
            first, skip, last = getattr(self, f"head_sr_x{s}")
            skipped = skip(first(x))
            y, tail = self.body(last(skipped)), getattr(self, f"tail_sr_x{s}")
            for i, block in enumerate(tail):
                y = block(y, skipped) if i == 0 else block(y)
            outs.append(y + nn.functional.interpolate(x, scale_factor=s, mode="bilinear"))
        return torch.cat([y.flatten(1) for y in outs], 1)


class SkipBlock(nn.Module):
    def __init__(self, dim, n):
        super().__init__()
        self.conv = nn.Conv2d(dim, n, 3, 1, 1)

    def forward(self, x, skip):
        return self.conv(x) + skip


class SpandrelIPT(nn.Module):
    """IPT as in the reference code and spandrel: a ModuleList of heads and of tails, one task at a time."""

    def __init__(self, scale=(2, 4), n=4, size=6):
        super().__init__()
        self.scale_idx, self.size = 0, size
        self.head = nn.ModuleList(nn.Sequential(nn.Conv2d(3, n, 3, padding=1), Block(n), Block(n)) for _ in scale)
        self.body = DetrDecoderLayer(n * 9, 3, 64, dropout=0.0, bias=False)
        self.query_embed = nn.Embedding(len(scale), n * 9 * (size // 3) ** 2)
        self.tail = nn.ModuleList(nn.Sequential(Upsampler(s, n), nn.Conv2d(n, 3, 3, padding=1)) for s in scale)

    def forward(self, x):
        x = self.head[self.scale_idx](x)
        tokens = nn.functional.unfold(x, 3, stride=3).permute(2, 0, 1)  # [N, B, 9 n]
        embed = self.query_embed.weight[self.scale_idx].view(tokens.shape[0], 1, -1)
        y = self.body(tokens, tokens, query_pos=embed).permute(1, 2, 0)
        res = nn.functional.fold(y, self.size, 3, stride=3) + x
        return self.tail[self.scale_idx](res)


class DetrEncoderLayer(nn.Module):
    """DETR's TransformerEncoderLayer, post-norm; the weights are not asked for."""

    def __init__(self, d_model=32, nhead=4, dropout=0.1):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, src, src_mask=None, src_key_padding_mask=None, pos=None):
        q = k = src if pos is None else src + pos
        options = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "need_weights": False}
        return self.norm(src + self.self_attn(q, k, value=src, **options)[0])


class DetrDecoderLayer(nn.Module):
    """DETR's TransformerDecoderLayer, post-norm."""

    def __init__(self, d_model=32, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=False, bias=True):
        super().__init__()
        options = {"dropout": dropout, "batch_first": batch_first, "bias": bias}
        self.self_attn = nn.MultiheadAttention(d_model, nhead, **options)
        self.multihead_attn = nn.MultiheadAttention(d_model, nhead, **options)
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward), nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def with_pos_embed(tensor, pos):
        return tensor if pos is None else tensor + pos

    def forward(self, tgt, memory, memory_key_padding_mask=None, pos=None, query_pos=None, tgt_mask=None):
        q = k = self.with_pos_embed(tgt, query_pos)
        tgt2 = self.self_attn(q, k, value=tgt, attn_mask=tgt_mask)[0]
        tgt = self.norm1(tgt + self.dropout(tgt2))
        tgt2 = self.multihead_attn(
            query=self.with_pos_embed(tgt, query_pos),
            key=self.with_pos_embed(memory, pos),
            value=memory,
            key_padding_mask=memory_key_padding_mask,
        )[0]
        tgt = self.norm2(tgt + self.dropout(tgt2))
        tgt2 = self.linear2(self.dropout(torch.relu(self.linear1(tgt))))
        return self.norm3(tgt + self.dropout(tgt2))
