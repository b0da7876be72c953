"""Pictures of smooth colours in files; another seed is another scene."""

from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, seed: int = 0, size: tuple[int, int] = (48, 36)) -> Path:
    """Return the scene of a seed, ``size`` = (width, height), enlarged or shrunk from 48x36."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((48, 36), Image.Resampling.BICUBIC)
    picture.resize(size, Image.Resampling.BICUBIC).save(path)
    return path
