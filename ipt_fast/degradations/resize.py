"""Bicubic resizing as ``bicubic.py`` does it, by any fraction and of any depth: outputs come to the size asked for."""

import math
from fractions import Fraction

import numpy as np

from ipt_fast.arguments import checked

_ROWS_AT_ONCE = 128
_TIE = 1e-9  # what a sum in float64 may miss of k + 1/2, far below what lies between two other sums
_SMALLEST, _LARGEST, _DENOMINATOR = Fraction(1, 100), 100, 10_000


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = ((1.5 * x - 2.5) * x) * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _contributions(size: int, scale: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [out, taps] that add up to 1, and input positions [out, taps] in 0..size-1, mirrored."""
    widen = min(float(scale), 1.0)
    taps = math.ceil(4 / widen) + 2
    numbers = np.arange(math.ceil(size * scale))
    # Centres are taken from whole numbers: of all outputs of one phase the weights are the same to the last bit.
    over, up, down = numbers + 1, scale.numerator, scale.denominator
    whole, rest = np.divmod(2 * over * down + up - down, 2 * up)
    first = np.floor(rest / (2 * up) - 2 / widen).astype(np.int64)
    offsets = first[:, None] + np.arange(taps)
    weights = widen * _cubic(widen * (rest[:, None] / (2 * up) - offsets))
    weights /= weights.sum(1, keepdims=True)
    place = (whole[:, None] + offsets - 1) % (2 * size)
    used = (weights != 0).any(0)
    return weights[:, used], np.minimum(place, 2 * size - 1 - place)[:, used]


def _resize_rows(image: np.ndarray, scale: Fraction) -> np.ndarray:
    """[N, ...] -> [ceil(N * scale), ...] of the same dtype; whole numbers are rounded half up and clamped."""
    weights, place = _contributions(len(image), scale)
    out = np.empty((len(weights), *image.shape[1:]), image.dtype)
    for start in range(0, len(out), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        total = np.zeros_like(out[rows], dtype=np.float64)
        for column, which in zip(weights[rows].T, place[rows].T, strict=True):
            total += column.reshape(-1, *[1] * (image.ndim - 1)) * image[which]
        if image.dtype != np.float32:
            total = np.clip(np.floor(total + (0.5 + _TIE)), 0, np.iinfo(image.dtype).max)
        out[rows] = total
    return out


@checked
def resize_array(image: np.ndarray, scale: Fraction) -> np.ndarray:
    """Do MATLAB's ``imresize(image, scale)``: bicubic, antialiased where it shrinks, mirrored borders, height first.

    Args:
        image: uint8, uint16 or float32 [H, W] or [H, W, C].
        scale: from 1/100 to 100, of a denominator of at most 10,000. Sides become ceil(side * scale).

    Returns:
        An array of the same dtype; whole numbers are rounded after each of the two passes, floats never, nor clamped.

    Raises:
        ValueError: another scale, shape or dtype.
    """
    if not _SMALLEST <= scale <= _LARGEST or scale.denominator > _DENOMINATOR:
        raise ValueError(f"resize_array: scale must be 1/100 to 100, of a denominator up to 10000, got {scale}")
    if image.dtype not in (np.uint8, np.uint16, np.float32) or image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(
            f"resize_array: image must be uint8, uint16 or float32 [H, W, C], got {image.dtype} {list(image.shape)}"
        )
    columns = np.ascontiguousarray(_resize_rows(image, scale).swapaxes(0, 1))
    return np.ascontiguousarray(_resize_rows(columns, scale).swapaxes(0, 1))
