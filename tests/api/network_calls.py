"""A valid call of every public function that has to do with networks: name -> its arguments, by name."""

import torch
from torch import nn

from tests.api.world import CONFIG, uniform


def _tail() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)]


def _attention() -> dict:
    q, k, v = (uniform(2, 5, 12, seed=i) for i in range(3))
    embeds = {"q_embed": uniform(5, 12, seed=3), "k_embed": uniform(5, 12, seed=4)}
    return {"q": q, "k": k, "v": v, "num_heads": 3, **embeds, "scale": 0.5, "impl": "eager"}


def _linear() -> dict:
    x, weight = uniform(2, 5, 8), uniform(12, 8, seed=1)
    norm = {"norm_weight": uniform(8, seed=2), "norm_bias": uniform(8, seed=3)}
    return {"x": x, **norm, "weight": weight, "bias": uniform(12, seed=4), "eps": 1e-5, "impl": "fused"}


def _ffn() -> dict:
    x, weight1, weight2 = uniform(2, 5, 8), uniform(12, 8, seed=1), uniform(8, 12, seed=2)
    biases = {"bias1": uniform(12, seed=3), "bias2": uniform(8, seed=4)}
    norm = {"norm_weight": uniform(8, seed=5), "norm_bias": uniform(8, seed=6)}
    options = {"eps": 1e-5, "activation": "gelu", "recompute": True, "impl": "fused"}
    return {"x": x, **norm, "weight1": weight1, "weight2": weight2, **biases, **options}


def _contrastive() -> dict:
    options = {"mode": "supcon", "temperature": 0.1, "reduction": "mean", "scope": "local", "impl": "eager"}
    return {"features": uniform(3, 4, 8) - 0.5, **options}


def _rows() -> dict:
    rows = {"x": uniform(4, 8) - 0.5, "y": uniform(4, 8, seed=1) - 0.5}
    options = {"mode": "sigmoid", "reduction": "mean", "scope": "local", "impl": "gemm"}
    return {**rows, "scale": uniform(1, seed=2), "bias": -1.0, **options}


def _degrade() -> dict:
    clean = (uniform(2, 3, 12, 12) * 255).byte()
    options = {"generator": torch.Generator().manual_seed(3), "seeds": None, "margin": 1, "rain": None, "impl": "eager"}
    return {"clean": clean, "task": "sr2", **options}


def _network() -> nn.Module:
    torch.manual_seed(0)
    up = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 3, 3, padding=1))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), up)


NETWORK_CALLS = {
    "patch_attention": lambda w: _attention(),
    "layernorm_linear": lambda w: _linear(),
    "ffn": lambda w: _ffn(),
    "patch_contrastive_loss": lambda w: _contrastive(),
    "row_contrastive_loss": lambda w: _rows(),
    "pixelshuffle_tail": lambda w: {"x": uniform(2, 4, 5, 6), "convs": _tail(), "scales": (2,), "impl": "eager"},
    "collapse_tail": lambda w: {"convs": _tail(), "scales": (2,), "dtype": torch.float32},
    "degrade": lambda w: _degrade(),
    "accelerate": lambda w: {"network": _network(), "frozen": False},
    "register_adapter": lambda w: {"name": "none of the tests'", "match": lambda module: None},
    "load_checkpoint": lambda w: {"path": w.checkpoint, "task": "derain", "num_heads": 3},
    "nearest_task": lambda w: {"task": "denoise70", "tasks": ("sr2", "denoise30")},
    "read_notes": lambda w: {"path": w.checkpoint},
    "keep_one_task": lambda w: {"model": w.model, "task": "sr2"},
    "check_weights": lambda w: {
        "path": "x.pt", "given": {"a": uniform(2)}, "wanted": {"a": uniform(2)}, "what": "given and wanted differ",
        "advice": "; no",
    },
    "save_checkpoint": lambda w: {"path": w.new("checkpoint.pt"), "state": w.state},
    "keep_best": lambda w: {"path": w.run / "checkpoint.pt"},
    "load_training_state": lambda w: {"path": w.run / "checkpoint.pt"},
    "newest_good": lambda w: {"folder": w.run},
    "generator_states": lambda w: {"device": torch.device("cpu")},
    "restore_generators": lambda w: {"states": w.state["rng"][0], "device": torch.device("cpu")},
    "save_network": lambda w: {
        "model": w.model, "path": w.new("network.pt"), "layout": "own", "dtype": torch.bfloat16, "notes": {"by": "me"},
    },
    "prepare_for_inference": lambda w: {"model": w.model, "task": "derain", "dtype": torch.float32},
    "restore": lambda w: {
        "model": w.model, "image": uniform(1, 3, 14, 16, scale=255.0), "task": "derain", "overlap": 4,
        "stitch": "blend", "batch_size": 2, "dtype": torch.float32, "self_ensemble": False,
    },
    "restore_tiled": lambda w: {
        "network": lambda x: x, "image": uniform(1, 3, 14, 16, scale=255.0), "tile": 12, "overlap": 4, "scale": 1,
        "batch_size": 2, "blend": "blend", "margin": 1, "device": "cpu",
    },
    "export_network": lambda w: {
        "model": w.model, "task": "derain", "path": w.new("network.pt2"), "value_range": 1, "dtype": torch.float16,
        "keep_ops": True,
    },
    "run_exported": lambda w: {"path": w.exported, "x": uniform(1, 3, 12, 12, scale=255.0)},
    "l1_loss": lambda w: {"output": uniform(2, 3, 4, 4), "target": uniform(2, 3, 4, 4, seed=1)},
    "pretrain_loss": lambda w: {
        "output": uniform(2, 3, 4, 4), "target": uniform(2, 3, 4, 4, seed=1), "feats": uniform(2, 4, 8), "lam": 0.1,
        "mode": "paper", "scope": "local",
    },
    "IPT": lambda w: {"config": CONFIG},
    "draw_positions": lambda w: {"model": w.model, "path": w.new("positions.png")},
    "draw_tasks": lambda w: {"model": w.model, "path": w.new("tasks.png")},
}  # fmt: skip
