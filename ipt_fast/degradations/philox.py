"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

A number is a pure function of a seed and of a place (pixel, streak, ...). So nothing depends on the order of the work,
on the batch, on the device or on the number of ranks, and every number can be drawn at once.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# Third word of the counter: what the numbers are for. Different uses of one seed never share numbers.
NOISE, RAIN_IMAGE, RAIN_STREAK, RAIN_FOLDER = range(4)


def philox(seeds: Tensor, c0: Tensor | int, c1: Tensor | int, c2: int = 0, c3: int = 0) -> list[Tensor]:
    """Return four independent 32-bit words per place, as int64 tensors in 0 .. 2^32 - 1.

    Args:
        seeds: int64, the 64-bit key; broadcast against ``c0`` and ``c1``.
        c0, c1: int64 tensors or numbers; their lower 32 bits are the first two words of the counter.
        c2, c3: the other two words.

    Returns:
        Four tensors of the broadcast shape, the same bits on every device.
    """
    if seeds.dtype != torch.int64:
        raise TypeError(f"philox: seeds must be int64 (got {seeds.dtype})")
    c0, c1 = (torch.as_tensor(c, device=seeds.device) for c in (c0, c1))
    shape = torch.broadcast_shapes(seeds.shape, c0.shape, c1.shape)
    key = [seeds & _MASK, (seeds >> 32) & _MASK]
    # The first round by hand, on the small tensors that came in: its multiplications do not depend on the key.
    p0, p1 = (c0 & _MASK) * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
    a = ((p1 >> 32) ^ c1 ^ key[0]) & _MASK
    c = ((p0 >> 32) ^ c3 ^ key[1]) & _MASK
    a, c = (t.broadcast_to(shape).contiguous() for t in (a, c))
    # b and d enter only by exclusive or, so their upper halves may hold anything until the end.
    b, d = torch.full(shape, p1 & _MASK, device=seeds.device), p0.broadcast_to(shape).contiguous()
    low, high = torch.empty_like(a), torch.empty_like(a)
    for _ in range(9):
        key = [(k + w) & _MASK for k, w in zip(key, _WEYL, strict=True)]
        torch.mul(a, _MULTIPLIERS[0], out=low)
        torch.mul(c, _MULTIPLIERS[1], out=high)
        torch.bitwise_right_shift(high, 32, out=a)
        torch.bitwise_right_shift(low, 32, out=c)
        a.bitwise_xor_(b).bitwise_xor_(key[0]).bitwise_and_(_MASK)
        c.bitwise_xor_(d).bitwise_xor_(key[1]).bitwise_and_(_MASK)
        b, d, low, high = high, low, d, b
    return [a, b.bitwise_and_(_MASK), c, d.bitwise_and_(_MASK)]


def uniform(word: Tensor) -> Tensor:
    """Return a word as a float32 in (0, 1), ends excluded: the middle of one of 2^23 equal intervals, exactly."""
    return ((word >> 9).float() + 0.5) * 2.0**-23


def normal_pair(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return two words as two independent standard normal float32 numbers (Box and Muller); at most 5.8 in size.

    Equal to rounding between devices, as log, cos and sin are.
    """
    r = uniform(radius).log_().mul_(-2.0).sqrt_()
    phase = uniform(angle).mul_(2 * math.pi)
    return r * phase.cos(), r * phase.sin_()
