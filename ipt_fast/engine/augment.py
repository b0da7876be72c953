"""Flips and rotations by quarter turns, drawn per sample from its seed."""

import torch
from torch import Tensor

# An odd number with bits all over, as a signed 64-bit one: seeds that follow each other get draws that do not.
_MIX = -7046029254386353131


def draw_orientation(seeds: Tensor) -> Tensor:
    """One of the eight orientations of a square per seed: int64 [B], 0..7, 0 as it is."""
    mixed = seeds * _MIX
    mixed = (mixed ^ (mixed >> 29)) * _MIX
    return (mixed >> 40) & 7


def orient(images: Tensor, orientation: Tensor) -> Tensor:
    """images [B, C, S, S] turned by ``orientation % 4`` quarter turns, after a flip for 4 and more."""
    out = torch.empty_like(images)
    for k in range(8):
        rows = (orientation == k).nonzero()[:, 0]
        if len(rows):
            part = images[rows.to(images.device)]
            part = part.flip(-1) if k >= 4 else part
            out[rows.to(images.device)] = torch.rot90(part, k % 4, (-2, -1))
    return out
