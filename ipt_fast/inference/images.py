"""Images of every kind that ``restore`` takes, as tensors, and results of the same kind."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipt_fast.io.images import LoadedImage, array_to_tensor, from_pil, read_image


@dataclass(frozen=True)
class Given:
    """An image as it was given: pixels [3, H, W] or [B, 3, H, W], 0..255, uint8 or float.

    ``dtype`` is what the result is computed to, uint8, uint16 or float32; ``finish`` makes the kind of the image of it.
    """

    pixels: Tensor
    dtype: torch.dtype
    finish: Callable[[Tensor], Any]


def given(image: Any) -> Given:
    """Return a path, a PIL image, an array or a tensor, as ``restore`` describes them.

    Raises:
        ValueError: anything else.
        OSError: the path cannot be read.
    """
    if isinstance(image, (str, os.PathLike)) and image:
        image = read_image(Path(image)).pil()
    if isinstance(image, Image.Image):
        loaded = from_pil(image)
        return Given(array_to_tensor(loaded.pixels), torch.uint8, lambda out: _picture(_array(out), loaded))
    if isinstance(image, np.ndarray):
        return Given(array_to_tensor(image), torch.uint16 if image.dtype == np.uint16 else torch.uint8, _array)
    holds_data = isinstance(image, Tensor) and not image.is_meta and image.layout is torch.strided
    if not holds_data or image.dim() not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
        shown = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            "restore: image must be a path, a PIL image, a uint8 array [H, W, 3] or a dense tensor [B, 3, H, W] 0..255 "
            f"that holds data, or a list of them, got {shown}"
        )
    return Given(image, torch.float32, lambda out: out)


def several_given(images: list[Any] | tuple[Any, ...]) -> list[Given]:
    """Return each of them; errors say which one it was.

    Raises:
        ValueError: as ``given``, and for a batch [B, 3, H, W] of several images.
        OSError: a path cannot be read.
    """
    taken: list[Given] = []
    for number, image in enumerate(images):
        try:
            taken.append(given(image))
            if taken[-1].pixels.dim() != 3:
                raise ValueError(f"a list holds tensors [3, H, W], got {list(image.shape)}")
        except (TypeError, ValueError) as error:
            text = str(error).removeprefix("restore: ")
            raise ValueError(f"restore: image[{number}] of {len(images)}: {text}") from error
    return taken


def enlarge_alpha(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize alpha [H, W] bicubically to (width, height), in its dtype."""
    large = np.asarray(Image.fromarray(alpha.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    return np.clip(np.rint(large), 0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)


def _array(out: Tensor) -> np.ndarray:
    array: np.ndarray = out.permute(1, 2, 0).contiguous().numpy()
    return array


def _picture(pixels: np.ndarray, loaded: LoadedImage) -> Image.Image:
    result = Image.fromarray(pixels)
    if loaded.alpha is not None:  # enlarged with the image, and kept
        result.putalpha(Image.fromarray(enlarge_alpha(loaded.alpha, result.size)))
    result.info.update(loaded.metadata.options("PNG")[0].items())
    return result
