"""Gaussian noise, clipped to the pixel range and not rounded, as the reference's test procedure adds it."""

from typing import Annotated

import torch
from torch import Tensor

from ipt_fast.arguments import Shape, checked
from ipt_fast.degradations.philox import NOISE, normal_pair, philox

# Pixels worked on at once on a CPU: the random words of that many stay in the cache.
PIXELS_AT_ONCE = 1 << 16


@checked(sigma=0)
def add_noise(
    clean: Annotated[Tensor, Shape("B 3 H W")], seeds: Annotated[Tensor, Shape("B", "int64")], sigma: float
) -> Tensor:
    """Return ``clip(clean + N(0, sigma), 0, 255)``.

    The noise of a pixel is a function of its image's seed and of its row and column: an image's top left corner gets
    the same noise whatever its size.

    Args:
        clean: uint8 or float [B, 3, H, W], 0..255.
        seeds: int64 [B], on the device of ``clean``.
        sigma: standard deviation in pixel units (0..255).

    Returns:
        float32 [B, 3, H, W].
    """
    B, _, H, W = clean.shape
    noisy = torch.empty(clean.shape, dtype=torch.float32, device=clean.device)
    rows = torch.arange(H, device=clean.device)[:, None]  # [H, 1]
    columns = torch.arange(W, device=clean.device)  # [W]
    step = B if clean.is_cuda else max(1, PIXELS_AT_ONCE // (H * W))
    for start in range(0, B, step):
        part = slice(start, start + step)
        words = philox(seeds[part, None, None], columns, rows, NOISE)  # 4 x [b, H, W]
        red, green = normal_pair(words[0], words[1])
        blue, _ = normal_pair(words[2], words[3])
        for channel, noise in enumerate((red, green, blue)):
            noisy[part, channel] = noise.mul_(sigma).add_(clean[part, channel]).clamp_(0, 255)
    return noisy
