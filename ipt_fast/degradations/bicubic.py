"""Bicubic resizing exactly as MATLAB's ``imresize`` does it, which made the benchmark files of super-resolution.

Cubic kernel with a = -0.5, widened by the scale when shrinking (antialias), symmetric border, height first, and
rounding to whole 0..255 after *each* of the two passes. For whole-number scales all weights are fractions of one small
denominator, so the work is done on whole numbers: exact in float32 in any order of summation, in TF32 and in float16
GEMMs as well, as long as sums are kept in float32.
"""

import functools
import math
from contextlib import nullcontext
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ipt_fast.arguments import checked

_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SCALES = (2, 3, 4, 5, 6, 7, 8)
_EXACT = 1 << 24  # whole numbers up to here are exact in float32
_LARGEST_SUM = 255 * 2  # times the denominator: the weights' absolute values add up to less than 2
_ROWS_AT_ONCE = 64  # output rows made by one GEMM; a band of a large image's sparse matrix


def _cubic(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return (3 * x**3 - 5 * x**2 + 2) / 2
    if x < 2:
        return (-(x**3) + 5 * x**2 - 8 * x + 4) / 2
    return Fraction(0)


@functools.cache
def _phases(scale: Fraction) -> tuple[list[list[int]], int]:
    """Whole-number weights and their denominator, per phase: output i is of phase i mod len and has taps from its
    left.
    """
    widen = min(scale, Fraction(1))
    taps = math.ceil(4 / widen) + 2
    rows = []
    for i in range(scale.numerator):
        centre = Fraction(i + 1) / scale + (1 - 1 / scale) / 2
        left = math.floor(centre - 2 / widen)
        rows.append([widen * _cubic(widen * (centre - left - t)) for t in range(taps)])
    denominator = math.lcm(*(w.denominator for row in rows for w in row))
    return [[int(w * denominator) for w in row] for row in rows], denominator


@functools.lru_cache(maxsize=256)
def resize_matrix(size: int, scale: Fraction) -> tuple[list[list[int]], list[list[int]], int]:
    """Return one pass over an axis of ``size`` pixels, as a sparse matrix of whole numbers.

    Kept as lists: a tensor would belong to the default device or the fake mode of the first call, and the ops need
    torch alone.

    Returns:
        weights [out, taps], input positions [out, taps] in 0..size-1, and the denominator of the weights.
    """
    out = math.ceil(size * scale)
    phases, denominator = _phases(scale)
    weights = [phases[i % len(phases)] for i in range(out)]
    widen = min(scale, Fraction(1))
    left = [math.floor(Fraction(i + 1) / scale + (1 - 1 / scale) / 2 - 2 / widen) - 1 for i in range(out)]
    mirrored = [*range(size), *reversed(range(size))]
    place = [[mirrored[(i + t) % (2 * size)] for t in range(len(phases[0]))] for i in left]
    return weights, place, denominator


class _Band(NamedTuple):
    """Rows of the matrix that share the inputs low..high-1: where in these, and with which weights, [rows, taps]."""

    low: int
    high: int
    place: list[list[int]]
    weights: list[list[int]]

    def dense(self, like: Tensor) -> Tensor:
        """Return [rows, high - low] in the dtype and on the device of ``like``."""
        matrix = torch.zeros(len(self.place), self.high - self.low, dtype=like.dtype, device="cpu")
        place = torch.tensor(self.place, device="cpu")
        matrix.scatter_add_(1, place, torch.tensor(self.weights, dtype=like.dtype, device="cpu"))
        return matrix.to(like.device)


@functools.lru_cache(maxsize=256)
def _bands(size: int, scale: Fraction, first: int, last: int) -> list[_Band]:
    """Return the matrix of outputs first..last-1 in bands."""
    weights, place, _ = resize_matrix(size, scale)
    bands = []
    for start in range(first, last, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, last))
        used = [p for line in zip(place[rows], weights[rows], strict=True) for p, w in zip(*line, strict=True) if w]
        low, high = min(used), max(used) + 1
        inside = [[min(max(p - low, 0), high - low - 1) for p in row] for row in place[rows]]
        bands.append(_Band(low, high, inside, weights[rows]))
    return bands


def _round(total: Tensor, denominator: int) -> Tensor:
    """Quotient, rounded half up and clamped, in place. Exact: division is correctly rounded, a tie k + 1/2 is a
    float32, and any other quotient is at least 1 / (2 denominator) away from one.
    """
    return total.div_(denominator).add_(0.5).floor_().clamp_(0, 255)


def resize_planes(planes: Tensor, scale: Fraction, cut: int = 0) -> Tensor:
    """Do both passes over uint8 or whole-number float planes [P, H, W]; leave out ``cut`` output pixels at each side.

    Returns float32 (float64 where float32 is not exact, from scale 8) [P, H', W'], whole numbers 0..255.
    """
    _, H, W = planes.shape
    denominator = _phases(scale)[1]
    dtype = torch.float32 if denominator * _LARGEST_SUM < _EXACT else torch.float64
    planes = planes.to(dtype)
    meta = planes.device.type == "meta"  # which has no autocast
    with nullcontext() if meta else torch.autocast(planes.device.type, enabled=False):
        rows = _bands(H, scale, cut, math.ceil(H * scale) - cut)
        planes = torch.cat([band.dense(planes) @ planes[:, band.low : band.high] for band in rows], 1)  # [P, H', W]
        planes = _round(planes, denominator)
        columns = _bands(W, scale, cut, math.ceil(W * scale) - cut)
        products = [planes[..., band.low : band.high] @ band.dense(planes).mT for band in columns]
        planes = torch.cat(products, 2)  # [P, H', W']
    return _round(planes, denominator)


@checked
def imresize(image: Tensor, scale: float | Fraction) -> Tensor:
    """Do MATLAB's ``imresize(image, scale)`` of uint8 images (bicubic, antialiased), to the last bit.

    Args:
        image: uint8 or float [..., H, W], any number of leading axes, any device; 0..255. Float images are rounded
            and clamped first, as images are uint8 in MATLAB.
        scale: a whole number from 2 to 8 (enlarge) or one over it (shrink). Sides become ceil(side * scale).

    Returns:
        float32 [..., H', W'], whole numbers 0..255.

    Raises:
        ValueError: another scale, or an image of fewer than two axes.
        TypeError: an image that is neither uint8 nor floating.
    """
    fraction = Fraction(float(scale)).limit_denominator(64)
    if max(fraction, 1 / fraction if fraction else 0) not in _SCALES or abs(float(fraction) - scale) > 1e-6:
        raise ValueError(f"imresize: scale is {scale}; it has to be a whole number from 2 to 8, or one over it")
    if image.dtype not in _DTYPES or image.layout is not torch.strided or image.is_nested:
        raise TypeError(f"imresize: image must be dense, uint8 or floating (got {image.dtype}, {image.layout})")
    if image.dim() < 2 or 0 in image.shape[-2:]:
        raise ValueError(f"imresize: image must be [..., H, W] (got shape {list(image.shape)})")
    if image.is_floating_point():
        image = image.to(torch.promote_types(image.dtype, torch.float32))  # a bfloat16 129.5 would be 130
        image = image.add(0.5).floor_().clamp_(0, 255)
    planes = resize_planes(image.reshape(-1, *image.shape[-2:]), fraction).float()
    return planes.reshape(*image.shape[:-2], *planes.shape[-2:])


@checked(scale=2)
def bicubic_down(image: Tensor, scale: int) -> Tensor:
    """Return ``imresize(image, 1 / scale)``: the low-resolution image of the benchmarks, whole-number float32."""
    return imresize(image, Fraction(1, scale))


@checked(scale=2)
def bicubic_up(image: Tensor, scale: int) -> Tensor:
    """Return ``imresize(image, scale)``: the bicubic baseline of super-resolution, rounded and clamped float32."""
    return imresize(image, Fraction(scale))
