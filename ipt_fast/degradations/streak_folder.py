"""Rain from a folder of streak pictures: what the reference code reads, and what public rain sets consist of."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.degradations.philox import RAIN_FOLDER, philox
from ipt_fast.io.images import SUFFIXES, read_image
from ipt_fast.io.scan import image_files


@checked
class StreakFolder:
    """Streak pictures (bright streaks on black) of a folder; called like ``rain_layers`` it cuts layers out of them.

    Picture and place follow from the image's seed. Pictures smaller than the layer are continued by mirroring. All
    pictures are held in memory as one gray byte a pixel, once per device that is used.

    Args:
        folder: searched with its sub-folders, in the order of the names.

    Raises:
        ValueError: no such folder, no picture in it, or a picture that cannot be read; the message names it.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"streak folder {folder} is no folder; give a folder of streak pictures (bright on black)")
        paths = image_files(folder, recursive=True)
        if not paths:
            raise ValueError(f"streak folder {folder} holds no picture ({', '.join(SUFFIXES)})")
        pictures = [_gray(path) for path in paths]
        sides = torch.tensor([p.shape for p in pictures], device="cpu")  # [pictures, 2] height, width
        starts = sides.prod(1).cumsum(0) - sides.prod(1)
        self.paths = paths
        self._pixels = torch.from_numpy(np.concatenate([p.reshape(-1) for p in pictures]))
        self._shapes = torch.cat([starts[:, None], sides], 1)  # [pictures, 3] first pixel, height, width
        self._on_device = {self._pixels.device: (self._pixels, self._shapes)}

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, seeds: Tensor, height: int, width: int) -> Tensor:
        """Return a rain layer per seed int64 [B]: float32 [B, height, width] on the seeds' device, levels 0..255."""
        held = self._on_device.get(seeds.device)
        if held is None:
            held = self._pixels.to(seeds.device), self._shapes.to(seeds.device)
            if type(held[0]) is Tensor:  # a fake tensor serves this call alone
                self._on_device[seeds.device] = held
        pixels, shapes = held
        words = philox(seeds, 0, 0, RAIN_FOLDER)  # 4 x [B]
        start, h, w = shapes[words[0] % len(self)].unbind(1)  # [B]
        y = words[1] % (h - height + 1).clamp(min=1)
        x = words[2] % (w - width + 1).clamp(min=1)
        rows = _mirror(y[:, None] + torch.arange(height, device=seeds.device), h[:, None])  # [B, height]
        columns = _mirror(x[:, None] + torch.arange(width, device=seeds.device), w[:, None])  # [B, width]
        place = (start[:, None] + rows * w[:, None])[:, :, None] + columns[:, None]  # [B, height, width]
        return pixels[place].float()


def _gray(path: Path) -> np.ndarray:
    try:
        return np.asarray(Image.fromarray(read_image(path, exif=False).pixels).convert("L"))
    except OSError as error:
        raise ValueError(f"streak picture {path} cannot be read: {error}") from error


def _mirror(place: Tensor, size: Tensor) -> Tensor:
    place = place % (2 * size)
    return torch.minimum(place, 2 * size - 1 - place)
