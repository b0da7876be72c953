"""The names that others may build on, and their types as a type checker of another project sees them."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {
    "ipt_fast": [
        "IPT", "TASKS", "IPTConfig", "__version__", "accelerate", "load_checkpoint", "ops", "prepare_for_inference",
        "restore",
    ],
    "ipt_fast.ops": [
        "CollapsedTail", "PixelShuffleTail", "collapse_tail", "degrade", "ffn", "layernorm_linear", "patch_attention",
        "patch_contrastive_loss", "pixelshuffle_tail", "row_contrastive_loss",
    ],
    "ipt_fast.model": ["IPT", "PRESETS", "IPTConfig", "preset"],
    "ipt_fast.inference": ["load_checkpoint", "prepare_for_inference", "restore"],
    "ipt_fast.tiling": ["restore_tiled"],
    "ipt_fast.acceleration": ["Acceleration", "LinearTail", "Report", "accelerate", "register_adapter"],
    "ipt_fast.data": [
        "SR_MARGIN", "Batch", "CropLoader", "ImageEntry", "ImageIndex", "NoImagesError", "build_index", "make_loader",
        "make_pair_loader",
    ],
}  # fmt: skip


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package])
    assert all(hasattr(module, name) for name in module.__all__)


USE = """
import torch
from ipt_fast import IPT, IPTConfig, accelerate, load_checkpoint
from ipt_fast.ops import patch_attention, patch_contrastive_loss

x = torch.zeros(1, 4, 8)
reveal_type(patch_attention(x, x, x, num_heads=2))
reveal_type(patch_contrastive_loss(x))
reveal_type(IPT(IPTConfig(tasks=("sr2",))))
reveal_type(load_checkpoint("file.pt"))
patch_attention(x, x, x, num_heads="two")
"""


def test_another_project_sees_the_types(tmp_path):
    pytest.importorskip("mypy", reason="needs the extra dev")
    program = tmp_path / "use.py"
    program.write_text(USE)
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent", str(program)]
    environment = {"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300).stdout
    assert said.count('Revealed type is "torch') == 2 and said.count("ipt_fast.model.ipt.IPT") == 2, said
    assert 'incompatible type "str"; expected "int"' in said and "Found 1 error" in said
