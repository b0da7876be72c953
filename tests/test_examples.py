"""Every example runs as its first lines say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast import IPT, IPTConfig, load_checkpoint, restore
from ipt_fast.checkpoint import save_network
from ipt_fast.cli import main

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder with a checkpoint, photos, and pairs of photos."""
    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    save_network(IPT(IPTConfig(n_feats=4, num_heads=4, num_layers=1)), folder / "network.pt")
    for kind in ("photos", "gt", "lq"):
        (folder / kind).mkdir()
    for i in range(4):
        photo = Image.effect_noise((230, 220), 20 + i).convert("RGB")
        photo.save(folder / "photos" / f"{i}.png")
        photo.crop((0, 0, 64, 56)).save(folder / "gt" / f"{i}.png")
        photo.crop((0, 0, 64, 56)).save(folder / "lq" / f"{i}.png")
    return folder


def run(*command: str | Path) -> str:
    folder = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": folder, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_detr_decoder():
    assert "out [2, 20, 64]" in run(sys.executable, EXAMPLES / "detr_decoder.py")


def test_accelerate_networks():
    assert run(sys.executable, EXAMPLES / "accelerate_networks.py").count("relative error") == 4


def test_restore_folder(place):
    out = place / "doubled"
    said = run(sys.executable, EXAMPLES / "restore_folder.py", place / "network.pt", "sr2", place / "lq", out)
    assert said.count("(64, 56) -> (128, 112)") == 4 and Image.open(out / "3.png").size == (128, 112)


def test_train_and_finetune(place):
    run("bash", EXAMPLES / "train_and_finetune.sh", place / "photos", place / "gt", place / "lq", place / "runs")
    assert len(list((place / "runs/restored").glob("*.png"))) == 4


def test_two_ranks(place):
    run("bash", EXAMPLES / "two_ranks.sh", place / "photos", place / "ranks")
    assert (place / "ranks/checkpoint.pt").is_file()


def test_new_task(place):
    small = ["steps=2", "batch_size=2", "workers=0"]
    run(sys.executable, EXAMPLES / "new_task.py", place / "photos", place / "network.pt", place / "own", *small)
    assert (place / "own/jpeg/checkpoint.pt").is_file() and len(list((place / "own/pairs/lq").glob("*.png"))) == 4


def test_onnx_tiles(place):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    program, out = place / "double.onnx", place / "onnx.png"
    assert main(["export", str(place / "network.pt"), "--task", "sr2", "-o", str(program)]) == 0
    run(sys.executable, EXAMPLES / "onnx_tiles.py", program, place / "gt/0.png", out)
    assert Image.open(out).size == (128, 112)


def test_spandrel_ipt(place):
    pytest.importorskip("spandrel", reason="needs spandrel, which brings torchvision")
    network, out = place / "network.safetensors", place / "spandrel.png"
    assert main(["convert", str(place / "network.pt"), "-o", str(network)]) == 0
    said = run(sys.executable, EXAMPLES / "spandrel_ipt.py", network, place / "lq/0.png", out, "sr3")
    assert "ipt-fast-sr3, scale 3: (3, 56, 64) -> (3, 168, 192)" in said
    expected = restore(load_checkpoint(network), Image.open(place / "lq/0.png"), "sr3")
    assert np.abs(np.asarray(expected, dtype=int) - np.asarray(Image.open(out), dtype=int)).max() <= 1


def test_notebook(tmp_path):
    pytest.importorskip("skimage", reason="needs the extra demo")
    cells = json.loads((EXAMPLES / "degradations.ipynb").read_text())["cells"]
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    program += f"\nfor n in plt.get_fignums():\n    plt.figure(n).savefig(r'{tmp_path}/' + str(n))\n"
    run(sys.executable, "-c", program)
    assert sum(1 for path in tmp_path.iterdir() if path.stat().st_size > 10_000) == 2
