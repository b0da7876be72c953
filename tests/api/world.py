"""What valid calls are made of: a tiny network and its files, photos and their index, results of a scoring."""

from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import generator_states, save_checkpoint, save_network
from ipt_fast.data import ImageIndex, build_index
from ipt_fast.evaluation.held_out import HeldOutResult
from ipt_fast.inference.export import export_network
from tests.evaluation.backbones import write_backbone

CONFIG = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, tasks=("sr2", "derain", "denoise30"))


def photo(height: int = 24, width: int = 30, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def uniform(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Return numbers in 0..scale that no global generator gives."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * scale


class World:
    """Files lie in ``folder``; ``new(name)`` is a path where nothing is yet."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._numbers = count()

    def new(self, name: str = "out") -> Path:
        return self.folder / f"{next(self._numbers)}_{name}"

    @property
    def model(self) -> IPT:
        torch.manual_seed(0)
        return IPT(CONFIG)

    @cached_property
    def photos(self) -> Path:
        folder = self.folder / "photos"
        for name, scale in (("GT", 1), ("LQ", 1)):
            (folder / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(photo(24 * scale, 30 * scale, i)).save(folder / name / f"{i}.png")
        return folder

    @cached_property
    def backbone(self) -> Path:
        return write_backbone(self.new("vgg16.pth"), "vgg16")

    @cached_property
    def index(self) -> ImageIndex:
        return build_index(self.photos / "GT", index_file=self.new("index"), min_size=12, progress=False)

    @cached_property
    def checkpoint(self) -> Path:
        return save_network(self.model, self.folder / "network.safetensors")

    @cached_property
    def state(self) -> dict:
        names = ("config", "model", "optimizer", "scaler", "schedule", "loader")
        return {**{name: {} for name in names}, "rng": [generator_states(torch.device("cpu"))], "step": 1, "epoch": 0}

    @cached_property
    def run(self) -> Path:
        (self.folder / "run").mkdir()
        save_checkpoint(self.folder / "run" / "checkpoint.pt", self.state)
        return self.folder / "run"

    @cached_property
    def exported(self) -> Path:
        export_network(self.model, "derain", self.folder / "network.pt2")
        return self.folder / "network.pt2"

    @cached_property
    def results(self) -> list[HeldOutResult]:
        images = [uniform(3, 24, 30, seed=i, scale=255.0).round() for i in range(3)]
        return [HeldOutResult("derain", "a", draw, *images, 20.0 + draw, 30.0) for draw in range(2)]
