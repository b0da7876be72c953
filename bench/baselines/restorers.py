"""Restorers that people train, written plainly from their papers: DnCNN, a small EDSR, SwinIR-light.

All take RGB [B, 3, H, W], 0..255, H and W multiples of 8, and give [B, 3, rH, rW].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.baselines.people_networks import EDSR

MEAN = (0.4488, 0.4371, 0.4040)


class InUnits(nn.Module):
    """A network for colours around 0, in units of 255 levels."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.network(x / 255 - self.mean) + self.mean) * 255


class DnCNN(nn.Module):
    """Zhang et al. 2017: convolutions with batch norm that give the noise, which is taken off; scale 1 alone."""

    def __init__(self, depth: int = 17, n: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, n, 3, padding=1), nn.ReLU(True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n), nn.ReLU(True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(n, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


def to_windows(x: Tensor, w: int) -> Tensor:
    """Cut [B, H, W, C] into windows [B windows, w w, C]."""
    B, H, W, C = x.shape
    return x.view(B, H // w, w, W // w, w, C).transpose(2, 3).reshape(-1, w * w, C)


def from_windows(x: Tensor, w: int, B: int, H: int, W: int) -> Tensor:
    """Invert ``to_windows``."""
    return x.view(B, H // w, W // w, w, w, -1).transpose(2, 3).reshape(B, H, W, -1)


class WindowAttention(nn.Module):
    """Self-attention inside w x w windows, with a learned bias for each relative position."""

    def __init__(self, dim: int, heads: int, w: int):
        super().__init__()
        self.heads, self.w = heads, w
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(heads, (2 * w - 1) ** 2))
        nn.init.trunc_normal_(self.bias, std=0.02)
        y, x = torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")
        y, x = y.flatten(), x.flatten()
        index = (y[:, None] - y + w - 1) * (2 * w - 1) + x[:, None] - x + w - 1  # [w w, w w]
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [K, w w, C]; mask [windows of an image, w w, w w], added to the scores."""
        K, N, C = x.shape
        q, k, v = self.qkv(x).view(K, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)  # [K, heads, N, d]
        bias = self.bias[:, self.index][None].to(q.dtype)  # [1, heads, N, N]
        if mask is not None:
            bias = (bias + mask[:, None].to(q.dtype)).repeat(K // len(mask), 1, 1, 1)
        if x.device.type == "cpu" and torch.is_grad_enabled():
            # With a bias that learns, PyTorch's own takes twice as long on a CPU.
            with torch.autocast("cpu", enabled=False):
                out = (q * (C // self.heads) ** -0.5 @ k.mT + bias).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, bias)
        return self.proj(out.transpose(1, 2).reshape(K, N, C))


class SwinLayer(nn.Module):
    """Attention in windows, moved by half a window in every other layer, then an MLP; pre-norm."""

    def __init__(self, dim: int, heads: int, w: int, shift: int):
        super().__init__()
        self.w, self.shift = w, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, w)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, H, W, C]."""
        B, H, W, _ = x.shape
        y, mask = self.norm1(x), None
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
            mask = self.mask(H, W, x)
        y = from_windows(self.attn(to_windows(y, self.w), mask), self.w, B, H, W)
        x = x + (y.roll((self.shift, self.shift), (1, 2)) if self.shift else y)
        return x + self.mlp(self.norm2(x))

    def mask(self, H: int, W: int, like: Tensor) -> Tensor:
        """Return what keeps pixels apart that only the roll has brought together: [windows, w w, w w], 0 or -100."""
        region = [(torch.arange(n) >= n - self.w).long() + (torch.arange(n) >= n - self.shift).long() for n in (H, W)]
        labels = (3 * region[0][:, None] + region[1]).view(1, H, W, 1)
        windows = to_windows(labels, self.w)[..., 0]  # [windows, w w]
        return torch.where(windows[:, :, None] == windows[:, None], 0.0, -100.0).to(like)


class SwinIRLight(nn.Module):
    """Liang et al. 2021, the lightweight network: groups of Swin layers and a convolution around a residual each."""

    def __init__(self, scale: int, dim: int = 60, groups: int = 4, layers: int = 6, heads: int = 6, w: int = 8):
        super().__init__()
        self.first = nn.Conv2d(3, dim, 3, padding=1)
        self.groups = nn.ModuleList(
            nn.ModuleList([*(SwinLayer(dim, heads, w, i % 2 * (w // 2)) for i in range(layers))]) for _ in range(groups)
        )
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(groups))
        self.norm, self.last = nn.LayerNorm(dim), nn.Conv2d(dim, dim, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.first(x)  # [B, C, H, W]
        for layers, conv in zip(self.groups, self.convs, strict=True):
            z = y.permute(0, 2, 3, 1)
            for layer in layers:
                z = layer(z)
            y = y + conv(z.permute(0, 3, 1, 2))
        y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.tail(first + self.last(y))


def make(name: str, scale: int) -> nn.Module:
    """Return a network by name: "dncnn" (scale 1), "edsr" (16 blocks of 32 features), "swinir" (4 layers)."""
    if name == "dncnn":
        if scale != 1:
            raise ValueError(f"DnCNN does not enlarge (got scale {scale}); choose edsr or swinir")
        return InUnits(DnCNN())
    if name == "edsr":
        network = EDSR(scale, n=32, blocks=16)
        if scale == 1:
            network.tail = nn.Sequential(network.tail[1])
        return InUnits(network)
    if name == "swinir":
        # The whole network's steps take seconds on a CPU, these four layers' half a second.
        return InUnits(SwinIRLight(scale, groups=2, layers=2))
    raise ValueError(f"no network {name!r}; choose dncnn, edsr or swinir")
