"""Denoisers that were never trained: BM3D, non-local means, wavelets. All are told the true sigma.

BM3D is its authors' package (CBM3D: colours taken apart, groups found in luma); non-local means and wavelets are
scikit-image's, with the settings that its documentation gives for known noise.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ipt_fast.tasks import Task

Units = Callable[[np.ndarray, float], np.ndarray]  # RGB [H, W, 3] and sigma in units of 255 levels
Restorer = Callable[[Tensor, Task], Tensor]  # lq [1, 3, H, W] in levels 0..255 -> [1, 3, rH, rW], not rounded


def bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise by BM3D."""
    from bm3d import bm3d_rgb

    return bm3d_rgb(image, sigma)


def non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise by non-local means."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(image, 5, 6, h=0.6 * sigma, sigma=sigma, fast_mode=False, channel_axis=2)


def wavelets(image: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise by soft thresholds of wavelet coefficients (BayesShrink)."""
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(image, sigma, channel_axis=2, convert2ycbcr=True, rescale_sigma=True)


def in_levels(method: Units) -> Restorer:
    """Return a method of colours 0..1 as one of [1, 3, H, W], 0..255."""

    def denoise(lq: Tensor, task: Task) -> Tensor:
        out = method(lq[0].permute(1, 2, 0).double().numpy() / 255, task.sigma / 255)
        return torch.from_numpy(np.ascontiguousarray(out)).float().permute(2, 0, 1)[None] * 255

    return denoise


CLASSICAL = {"BM3D": in_levels(bm3d), "non-local means": in_levels(non_local_means), "wavelets": in_levels(wavelets)}
