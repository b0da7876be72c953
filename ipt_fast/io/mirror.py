"""Extend images that are too small by mirroring them at their borders (the border pixel twice)."""

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
    top, left = (max(0, size - side) // 2 if centre else 0 for side in (height, width))
    for axis, side, before in ((axes[1], width, left), (axes[0], height, top)):  # rows last, whole ones are quick
        if side < size:
            place = np.arange(-before, size - before) % (2 * side)
            index = np.minimum(place, 2 * side - 1 - place)
            if isinstance(image, np.ndarray):
                image = image.take(index, axis)
            else:
                image = image.index_select(axis, torch.from_numpy(index).to(image.device, non_blocking=True))
    return image, top, left
