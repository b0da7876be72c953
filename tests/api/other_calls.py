"""A valid call of every public function that has nothing to do with networks: name -> its arguments, by name."""

from fractions import Fraction

import torch
from PIL import Image

from ipt_fast.engine.config import recipe
from ipt_fast.evaluation.score import INPUT, Score
from ipt_fast.evaluation.test_sets import find_set
from ipt_fast.tasks import get_task
from tests.api.world import CONFIG, photo, uniform


def _images(**more) -> dict:
    return {"output": uniform(2, 3, 16, 18, scale=255.0), "target": uniform(2, 3, 16, 18, seed=1, scale=255.0), **more}


def _loader(**more) -> dict:
    sizes = {"batch_size": 2, "rank": 0, "world_size": 1, "seed": 0, "patch_size": 12, "crops_per_image": 1}
    return {**sizes, "workers": 0, "prefetch": 1, "data_fraction": 1.0, **more}


def _score(method: str, value: float) -> Score:
    return Score("set", "sr2", "a", method, value, value, 0.5, 1.0)


OTHER_CALLS = {
    "get_task": lambda w: {"name": "sr2"},
    "Task": lambda w: {"name": "sr2", "kind": "sr", "scale": 2, "sigma": 0.0},
    "preset": lambda w: {"name": "tiny"},
    "IPTConfig": lambda w: {**CONFIG.to_dict(), "tasks": ("sr2", "derain")},
    "TrainConfig": lambda w: {**vars(recipe("tiny"))},
    "recipe": lambda w: {"name": "tiny", "changes": ["lr=1e-4"]},
    "finetune_recipe": lambda w: {"network": CONFIG, "task": "sr2"},
    "apply_changes": lambda w: {"config": recipe("tiny"), "changes": ["steps=3"]},
    "check": lambda w: {"config": recipe("tiny"), "ranks": 1, "pairs": False, "given": ("lr",)},
    "warn": lambda w: {"config": recipe("tiny"), "total": 2000, "steps_per_epoch": 10, "given": ("lr",)},
    "total_steps": lambda w: {"config": recipe("base"), "steps_per_epoch": 10},
    "learning_rate": lambda w: {"config": recipe("tiny"), "step": 3, "total": 2000},
    "imresize": lambda w: {"image": uniform(3, 12, 12, scale=255.0), "scale": 0.5},
    "bicubic_down": lambda w: {"image": uniform(3, 12, 12, scale=255.0), "scale": 2},
    "bicubic_up": lambda w: {"image": uniform(3, 12, 12, scale=255.0), "scale": 2},
    "resize_array": lambda w: {"image": photo(), "scale": Fraction(3, 4)},
    "add_noise": lambda w: {"clean": (uniform(2, 3, 6, 6) * 255).byte(), "seeds": torch.arange(2), "sigma": 5.0},
    "rain_layers": lambda w: {"seeds": torch.arange(2), "height": 12, "width": 14},
    "add_rain": lambda w: {"clean": (uniform(2, 3, 6, 6) * 255).byte(), "layers": uniform(2, 6, 6, scale=9.0)},
    "StreakFolder": lambda w: {"folder": w.photos / "GT"},
    "psnr_y": lambda w: _images(border=1),
    "psnr_rgb": lambda w: _images(border=1),
    "ssim_y": lambda w: _images(border=1),
    "to_luma": lambda w: {"image": uniform(3, 4, 5, scale=255.0)},
    "scored_border": lambda w: {"task": get_task("sr2")},
    "score_set": lambda w: {
        "image_set": find_set(w.photos, get_task("derain")), "task": get_task("derain"), "methods": {}, "seed": 1,
        "limit": 1,
    },
    "score_pair": lambda w: {
        "image_set": find_set(w.photos, get_task("derain")), "number": 1, "task": get_task("derain"), "methods": {},
        "seed": 1, "distances": {},
    },
    "load_lpips": lambda w: {"path": w.backbone},
    "load_dists": lambda w: {"path": w.backbone},
    "mean_scores": lambda w: {"scores": [_score(INPUT, 20.0), _score("network", 30.0)]},
    "find_set": lambda w: {"folder": w.photos, "task": get_task("derain")},
    "read_pair": lambda w: {"pair": find_set(w.photos, get_task("derain")).pairs[0], "task": get_task("derain")},
    "score_held_out": lambda w: {
        "model": w.model, "photos": {"a": torch.from_numpy(photo()).permute(2, 0, 1)}, "tasks": ["denoise30"],
        "seed": 1,
    },
    "mean_psnr": lambda w: {"results": w.results},
    "score_rows": lambda w: {"results": w.results},
    "sample_grid": lambda w: {"results": w.results, "crop": 16, "zoom": 2},
    "write_sample_grids": lambda w: {"results": w.results, "folder": w.new("grids")},
    "find_paper_sets": lambda w: {"roots": [w.photos]},
    "table_rows": lambda w: {"table": 3, "ours": {("Rain100L", "derain"): {"mine": 30.0}}, "methods": ["mine"]},
    "read_image": lambda w: {"source": w.photos / "GT" / "0.png", "exif": True, "alpha": "keep", "floats": True},
    "read_rgb": lambda w: {"path": w.photos / "GT" / "0.png"},
    "write_image": lambda w: {
        "image": Image.fromarray(photo()), "path": w.new("image.png"), "force": True, "quality": 90,
    },
    "array_to_tensor": lambda w: {"image": photo()},
    "to_uint8": lambda w: {"image": uniform(3, 4, 5, scale=255.0)},
    "build_index": lambda w: {
        "paths": [w.photos / "GT"], "index_file": w.new("index"), "workers": 1, "min_size": 12, "progress": False,
    },
    "make_loader": lambda w: _loader(index=w.index, loader="torch", tasks=("sr2",), device="cpu"),
    "make_pair_loader": lambda w: _loader(
        clean=w.photos / "GT", degraded=w.photos / "LQ", task="derain", progress=False
    ),
    "write_shards": lambda w: {
        "index": w.index, "out": w.new("shards"), "roots": (w.photos,), "shard_bytes": 1000, "progress": False,
    },
}  # fmt: skip
