"""Networks as people have them, each with an input and what ``accelerate`` is to swap."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.baselines.people_networks import (
    EDSR,
    EDT,
    DetrDecoderLayer,
    DetrEncoderLayer,
    LBNet,
    SpandrelIPT,
    SwinIR,
    Upsample,
)


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
