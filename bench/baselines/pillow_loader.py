"""The loader most people would write: PyTorch's DataLoader over a Dataset that opens, decodes and crops with Pillow.

The contender of the data benchmark. It gives what ours give, uint8 crops [B, 3, S, S] of random places in photos in
random order, channels last as ours, and nothing more: no index, no resume, no rank, no check of what it reads.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class PillowCrops(Dataset):
    """One random crop [S, S, 3] of each photo; photos smaller than it are stretched to it."""

    def __init__(self, paths: Sequence[str | Path], size: int) -> None:
        self.paths = list(paths)
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as file:
            photo = file.convert("RGB")
        width, height = photo.size
        if min(width, height) < self.size:
            photo = photo.resize((max(width, self.size), max(height, self.size)), Image.Resampling.BILINEAR)
            width, height = photo.size
        left = int(torch.randint(width - self.size + 1, ()))
        top = int(torch.randint(height - self.size + 1, ()))
        crop = photo.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(crop))


def pillow_batches(paths: Sequence[str | Path], size: int, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Batches uint8 [B, 3, S, S] without end; workers stay from one epoch to the next."""
    options = {"batch_size": batch_size, "shuffle": True, "drop_last": True, "num_workers": workers}
    loader = DataLoader(PillowCrops(paths, size), **options, persistent_workers=workers > 0)
    while True:
        for crops in loader:
            yield crops.permute(0, 3, 1, 2)
