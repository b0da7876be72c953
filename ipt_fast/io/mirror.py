"""Extend images that are too small by mirroring them at their borders (the border pixel twice)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def mirror_pad(
    image: Any, size: int, *, axes: tuple[int, int] = (-2, -1), centre: bool = False
) -> tuple[Any, int, int]:
    """Extend an array or a tensor to sides of at least ``size``, as often mirrored as it takes.

    Args:
        image: any shape and dtype; returned as it is where it is large enough.
        size: the least height and width.
        axes: which of its axes are height and width.
        centre: extend at both ends; otherwise below and to the right.

    Returns:
        The image, and row and column where its top left pixel now is.

    Raises:
        ValueError: the image is empty.
    """
    height, width = (image.shape[axis] for axis in axes)
    if not height or not width:
        raise ValueError(f"there is nothing to mirror in a region of {width}x{height} pixels")
    if height >= size and width >= size:
        return image, 0, 0
    shape = list(image.shape)
    for axis in axes:
        shape[axis] = max(size, shape[axis])
    top, left = ((max(0, size - side) // 2 if centre else 0) for side in (height, width))
    flip: Any = np.flip if isinstance(image, np.ndarray) else torch.flip
    move: Any = np.moveaxis if isinstance(image, np.ndarray) else torch.movedim
    out = np.empty(shape, image.dtype) if isinstance(image, np.ndarray) else image.new_empty(shape)
    view, source = move(out, axes, (0, 1)), move(image, axes, (0, 1))
    view[top : top + height, left : left + width] = source
    mirror_fill(view, height, width, flip, top, left)
    return out, top, left


def mirror_fill(out: Any, height: int, width: int, flip: Callable[..., Any], top: int = 0, left: int = 0) -> None:
    """Fill [H, W, ...], an array or a tensor of which the rectangle at (top, left) is there, by mirroring.

    Rows and columns at a time: gathering pixel by pixel takes longer than to decode a photo. ``flip`` is np.flip or
    torch.flip.
    """
    columns = slice(left, left + width)
    first, end = top, top + height
    while end < len(out):  # the border below is a mirror, and so is the end of each reflection
        more = min(end - first, len(out) - end)
        out[end : end + more, columns] = flip(out[end - more : end, columns], (0,))
        end += more
    while first:
        more = min(end - first, first)
        out[first - more : first, columns] = flip(out[first : first + more, columns], (0,))
        first -= more
    first, end = left, left + width
    while end < out.shape[1]:
        more = min(end - first, out.shape[1] - end)
        out[:, end : end + more] = flip(out[:, end - more : end], (1,))
        end += more
    while first:
        more = min(end - first, first)
        out[:, first - more : first] = flip(out[:, first : first + more], (1,))
        first -= more
