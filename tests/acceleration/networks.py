"""Networks as people have them, each with an input and what ``accelerate`` is to swap."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.baselines.people_networks import EDSR, Block, DetrDecoderLayer, SwinIR, Upsample, Upsampler


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


class EDT(nn.Module):
    """EDT: heads and tails of each task are ModuleLists, found by name and run by one loop; the tail takes skips."""

    def __init__(self, scales=(2, 3), n=8, dim=12):
        super().__init__()
        self.scales = scales
        self.body = nn.Conv2d(dim, dim, 3, 1, 1)
        for s in scales:
            head = [nn.Conv2d(3, n, 3, 1, 1), Block(n), nn.Conv2d(n, dim, 3, 1, 1)]
            tail = [nn.Conv2d(dim, n, 3, 1, 1), Upsample(s, n), nn.Conv2d(n, 3, 3, 1, 1)]
            setattr(self, f"head_sr_x{s}", nn.ModuleList(head))
            setattr(self, f"tail_sr_x{s}", nn.ModuleList(tail))

    def forward(self, x):
        outs = []
        for s in self.scales:
            first, skip, last = getattr(self, f"head_sr_x{s}")
            skipped = skip(first(x))
            y = self.body(last(skipped))
            for i, block in enumerate(getattr(self, f"tail_sr_x{s}")):
                y = block(y) + skipped if i == 0 else block(y)
            outs.append(y + nn.functional.interpolate(x, scale_factor=s, mode="bilinear"))
        return torch.cat([y.flatten(1) for y in outs], 1)


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
        return self.tail[self.scale_idx](nn.functional.fold(y, self.size, 3, stride=3) + x)


class DetrEncoderLayer(nn.Module):
    """DETR's TransformerEncoderLayer, post-norm; the weights are not asked for."""

    def __init__(self, d_model=32, nhead=4, dropout=0.1):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, src, src_key_padding_mask=None, pos=None):
        q = k = src if pos is None else src + pos
        return self.norm(src + self.self_attn(q, k, src, src_key_padding_mask, need_weights=False)[0])


class Conv2(nn.Sequential):
    """A Sequential of its owner's class, which is pickled in its owner's way."""

    def __getstate__(self):
        return {**self.__dict__, "note": "kept"}


@dataclass
class Case:
    make: Callable[[], nn.Module]
    swapped: list[str]
    inputs: list[tuple[int, ...]] = field(default_factory=lambda: [(2, 3, 9, 11)])
    eager_only: bool = False

    def network(self, dtype=torch.float32) -> nn.Module:
        torch.manual_seed(0)
        return self.make().to(dtype).eval()

    def args(self, dtype=torch.float32) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        return tuple(torch.rand(shape, dtype=dtype) for shape in self.inputs)


def conv(i, o, **kwargs):
    return nn.Conv2d(i, o, 3, **{"padding": 1, **kwargs})


class Detr(nn.Module):
    """A decoder layer with the arguments that torch's tracers take: tensors alone."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, tgt, memory, pos, query_pos):
        return self.layer(tgt, memory, pos=pos, query_pos=query_pos)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = DetrEncoderLayer(dropout=0.0)

    def forward(self, src, pos):
        return self.layer(src, pos=pos)


_DETR = [(7, 2, 32), (19, 2, 32), (19, 1, 32), (7, 1, 32)]
CASES = {
    "EDSR x2": Case(lambda: EDSR(2), ["tail.0.0"]),
    "EDSR x3": Case(lambda: EDSR(3), ["tail.0.0"]),
    "EDSR x4": Case(lambda: EDSR(4), ["tail.0.0"]),
    "SwinIR x2": Case(lambda: SwinIR(2), ["upsample.0"]),
    "SwinIR x3": Case(lambda: SwinIR(3), ["upsample.0"]),
    "SwinIR x4": Case(lambda: SwinIR(4), ["upsample.0"]),
    "LBNet x2": Case(lambda: LBNet(2), ["upsample.0"]),
    "EDT": Case(EDT, ["tail_sr_x2.1.0", "tail_sr_x3.1.0"]),
    "spandrel's IPT": Case(
        SpandrelIPT, ["body.self_attn", "body.multihead_attn", "tail.0.0.0", "tail.1.0.0"], [(2, 3, 6, 6)]
    ),
    "DETR decoder": Case(
        lambda: Detr(DetrDecoderLayer(dropout=0.0)), ["layer.self_attn", "layer.multihead_attn"], _DETR
    ),
    "DETR encoder": Case(Encoder, ["layer.self_attn"], [(7, 2, 32), (7, 1, 32)]),
    "Sequential": Case(
        lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 32), nn.PixelShuffle(2), conv(8, 3), nn.ReLU()), ["2"]
    ),
    "Sequential of its owner's class": Case(lambda: Conv2(conv(3, 8), nn.ReLU(), Upsample(2, 8), conv(8, 3)), ["2.0"]),
    "a tail twice in a Sequential": Case(
        lambda: nn.Sequential(Upsample(2, 3), conv(3, 3), nn.ReLU(), Upsample(2, 3), conv(3, 3)), ["0.0", "3.0"]
    ),
}


def run(network, args):
    with torch.no_grad():
        return network(*args)
