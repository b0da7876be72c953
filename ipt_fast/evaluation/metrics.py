"""PSNR and SSIM as the paper's test code and the super-resolution benchmarks compute them.

Every function clamps and rounds the output first, as a file would, and returns one value per image.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, TypeVar

import torch
from torch import Tensor

from ipt_fast.arguments import Shape, checked
from ipt_fast.tasks import Task

_Images = Annotated[Tensor, Shape("... 3 H W")]
_Target = Annotated[Tensor, Shape("... 3 h w")]  # of the same size, which is asked for in words of its own
_Item = TypeVar("_Item")
_Key = TypeVar("_Key")

# BT.601 luma for RGB 0..255; the offset of 16 cancels in differences and is kept for SSIM.
_LUMA = (65.738 / 256, 129.057 / 256, 25.064 / 256)
SSIM_SIDE, _SSIM_SIGMA = 11, 1.5


def as_scored(name: str, output: Tensor, target: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """Both as float64 [B, 3, h, w], the output clamped and rounded, ``border`` pixels cut off every side."""
    if output.shape != target.shape:
        raise ValueError(
            f"{name}: output is {list(output.shape)} and target {list(target.shape)}; they must be equal, "
            "so crop the target to a multiple of the scale first"
        )
    if output.dim() not in (3, 4) or output.shape[-3] != 3:
        raise ValueError(f"{name}: needs RGB images [3, H, W] or [B, 3, H, W], got {list(output.shape)}")
    if border < 0 or min(output.shape[-2:]) <= 2 * border:
        raise ValueError(f"{name}: border={border} leaves nothing of {list(output.shape[-2:])} pixels")
    output, target = (x.detach().double().reshape(-1, *x.shape[-3:]) for x in (output, target))
    output = output.clamp(0, 255).round()
    inside = (..., slice(border, output.shape[-2] - border), slice(border, output.shape[-1] - border))
    return output[inside], target[inside]


def finite_mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are finite; where none is, the first (inf, nan or None)."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else values[0]


def means_by(items: Iterable[_Item], key: Callable[[_Item], _Key], fields: Sequence[str]) -> dict[_Key, tuple]:
    """Return key -> the finite means of ``fields`` over the items of that key, keys in the order of the items."""
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return {k: tuple(finite_mean([getattr(i, f) for i in group]) for f in fields) for k, group in groups.items()}


@checked
def scored_border(task: Task) -> int:
    """Return the pixels at every side that are not scored: the scale for super-resolution, otherwise none."""
    return task.scale if task.kind == "sr" else 0


@checked
def to_luma(image: _Images) -> Tensor:
    """Return Y of RGB images [..., 3, H, W], 0..255, as [..., H, W] in 16..235, not rounded, in the images' dtype."""
    r, g, b = image.unbind(-3)
    return 16 + _LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b


def _psnr(difference: Tensor) -> Tensor:
    error = difference.flatten(1).square().mean(1)  # [B]
    return 10 * torch.log10(255.0**2 / error)  # equal images: inf


@checked
def psnr_y(output: _Images, target: _Target, border: int = 0) -> Tensor:
    """Return PSNR on Y (``utility.py``, calc_psnr, of the reference code), in dB.

    Args:
        output: [B, 3, H, W] or [3, H, W], RGB 0..255, uint8 or float; clamped and rounded here.
        target: the same shape; taken as it is.
        border: pixels cut off every side before; see ``scored_border``.

    Returns:
        float64 [B]; infinite where the images are equal.

    Raises:
        ValueError: shapes that differ or are no RGB images, or a border that leaves nothing.
    """
    output, target = as_scored("psnr_y", output, target, border)
    weight = output.new_tensor(_LUMA).view(3, 1, 1)
    return _psnr(((output - target) * weight).sum(1))


@checked
def psnr_rgb(output: _Images, target: _Target, border: int = 0) -> Tensor:
    """Return PSNR over all three colours, in dB. Arguments, result and errors as ``psnr_y``."""
    output, target = as_scored("psnr_rgb", output, target, border)
    return _psnr(output - target)


@checked
def ssim_y(output: _Images, target: _Target, border: int = 0) -> Tensor:
    """Return SSIM on Y (Wang et al., 2004).

    Gaussian window 11x11, sigma 1.5, K 0.01 and 0.03, mean over whole windows only. Arguments and errors
    as ``psnr_y``; images need at least 11 pixels a side inside the border.

    Returns:
        float64 [B], at most 1.
    """
    output, target = as_scored("ssim_y", output, target, border)
    if min(output.shape[-2:]) < SSIM_SIDE:
        raise ValueError(
            f"ssim_y: needs at least {SSIM_SIDE} pixels a side inside the border, got {list(output.shape[-2:])}"
        )
    x, y = to_luma(output)[:, None], to_luma(target)[:, None]  # [B, 1, h, w]
    place = torch.arange(SSIM_SIDE, dtype=x.dtype, device=x.device) - SSIM_SIDE // 2
    window = torch.exp(-(place**2) / (2 * _SSIM_SIGMA**2))
    window = window / window.sum()

    def mean(image: Tensor) -> Tensor:
        image = torch.nn.functional.conv2d(image, window.view(1, 1, -1, 1))
        return torch.nn.functional.conv2d(image, window.view(1, 1, 1, -1))

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    cov = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.flatten(1).mean(1)
