"""Small photo-like files of any kind, made on the spot, and the loaders that read them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.data.dali import unavailable_reason

DALI_MISSING = unavailable_reason()
needs_dali = pytest.mark.skipif(DALI_MISSING is not None, reason=str(DALI_MISSING))
KINDS = ["torch", pytest.param("dali", marks=needs_dali)]


def pixels(height: int = 80, width: int = 100, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 [H, W, 3]: compresses like a photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpeg_bytes(array: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def write_jpegs(folder: Path, count: int, height: int = 80, width: int = 100) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"photo{number:03}.jpg"
        path.write_bytes(jpeg_bytes(pixels(height + number % 7, width + number % 5, number)))
        paths.append(path)
    return paths


def take(loader, count: int) -> list:
    return [next(loader) for _ in range(count)]


def same(left: list, right: list) -> bool:
    """Return whether batches are equal: crops, seeds, task, epoch and step."""
    return all(
        torch.equal(a.gt, b.gt) and torch.equal(a.seeds, b.seeds) and (a.task, *a[4:]) == (b.task, *b[4:])
        for a, b in zip(left, right, strict=True)
    )
