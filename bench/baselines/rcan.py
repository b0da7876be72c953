"""RCAN (Zhang et al. 2018), written plainly from its paper: residual groups of blocks with channel attention.

It takes RGB [B, 3, H, W] and gives [B, 3, rH, rW].
"""

from torch import Tensor, nn

from bench.baselines.people_networks import Upsampler


class ChannelAttention(nn.Module):
    """Scale each channel by a share that two 1x1 convolutions draw from the mean of all."""

    def __init__(self, n: int, reduction: int):
        super().__init__()
        self.share = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, n // reduction, 1), nn.ReLU(True), nn.Conv2d(n // reduction, n, 1),
            nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.share(x)


class Residual(nn.Module):
    """A chain with its input added."""

    def __init__(self, *chain: nn.Module):
        super().__init__()
        self.chain = nn.Sequential(*chain)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.chain(x)


def conv(n: int, m: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size."""
    return nn.Conv2d(n, m, 3, padding=1)


class RCAN(nn.Module):
    """Of the published size: 10 groups of 20 blocks, 64 features, reduction 16."""

    def __init__(self, scale: int, n: int = 64, groups: int = 10, blocks: int = 20, reduction: int = 16):
        super().__init__()
        self.head = conv(3, n)
        self.body = Residual(*(self.group(n, blocks, reduction) for _ in range(groups)), conv(n, n))
        self.tail = nn.Sequential(Upsampler(scale, n), conv(n, 3))

    @staticmethod
    def group(n: int, blocks: int, reduction: int) -> nn.Module:
        """Return one residual group."""
        inner = (Residual(conv(n, n), nn.ReLU(True), conv(n, n), ChannelAttention(n, reduction)) for _ in range(blocks))
        return Residual(*inner, conv(n, n))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] -> [B, 3, rH, rW]."""
        return self.tail(self.body(self.head(x)))
