"""``accelerate`` on EDSR and on SwinIR's tail: the time before and after, and the largest difference.

The networks are written from their published structure, SwinIR without its windows; weights are random, for neither
time nor exactness depends on them.
"""

import statistics
import time

import torch
from torch import Tensor, nn

from ipt_fast import accelerate


class Block(nn.Module):
    """EDSR's residual block."""

    def __init__(self, n: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Upsampler(nn.Sequential):
    """Convolution and PixelShuffle, once or twice."""

    def __init__(self, scale: int, n: int):
        rs = {2: [2], 3: [3], 4: [2, 2]}[scale]
        super().__init__(*(m for r in rs for m in (nn.Conv2d(n, n * r * r, 3, padding=1), nn.PixelShuffle(r))))


class EDSR(nn.Module):
    """EDSR-baseline: the tail is a Sequential."""

    def __init__(self, scale: int, n: int = 64, blocks: int = 4):
        super().__init__()
        self.head = nn.Conv2d(3, n, 3, padding=1)
        self.body = nn.Sequential(*(Block(n) for _ in range(blocks)), nn.Conv2d(n, n, 3, padding=1))
        self.tail = nn.Sequential(Upsampler(scale, n), nn.Conv2d(n, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(self.body(x) + x)


class SwinIR(nn.Module):
    """SwinIR's reconstruction: the tail is two attributes, called one after the other."""

    def __init__(self, scale: int, dim: int = 60, n: int = 64):
        super().__init__()
        self.conv_first = nn.Conv2d(3, dim, 3, 1, 1)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, 1, 1)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, n, 3, 1, 1), nn.LeakyReLU())
        self.upsample = Upsampler(scale, n)
        self.conv_last = nn.Conv2d(n, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(x)
        x = self.conv_after_body(x) + x
        return self.conv_last(self.upsample(self.conv_before_upsample(x)))


def milliseconds(network: nn.Module, x: Tensor, rounds: int = 5) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        network(x)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


@torch.inference_mode()
def main() -> None:
    """Print a line a network."""
    torch.manual_seed(0)
    x = torch.rand(1, 3, 48, 48) * 255
    for kind, scale in ((EDSR, 2), (EDSR, 4), (SwinIR, 2), (SwinIR, 4)):
        network = kind(scale).eval()
        expected, before = network(x), milliseconds(network, x)
        undo = accelerate(network, frozen=True)  # the weights stay as they are: collapsed once
        after, error = milliseconds(network, x), (network(x) - expected).abs().max() / expected.abs().max()
        print(f"{kind.__name__} x{scale}: {before:.1f} ms -> {after:.1f} ms, relative error {error:.1e}")
        assert error < 1e-5
        undo()


if __name__ == "__main__":
    main()
