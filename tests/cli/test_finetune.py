"""``ipt-fast finetune`` and ``train.py --finetune`` as a new user tries them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import FORMAT, save_network
from ipt_fast.cli import main
from ipt_fast.engine.run import main as train
from ipt_fast.inference import load_checkpoint

SMALL = ["--loader", "torch", "--workers", "0", "--precision", "fp32", "--set", "steps=2", "batch_size=4"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return IPT(IPTConfig(n_feats=4, patch_size=12, num_heads=12, num_layers=1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, network):
    """Return a file of a network with six tasks."""
    path = tmp_path_factory.mktemp("released") / "IPT_pretrain.pt"
    save_network(network, path)
    return str(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for seed in range(4):
        small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((80, 64))
        for folder, image in (("sharp", picture), ("blur", picture.resize((20, 16)).resize((80, 64)))):
            (root / folder).mkdir(exist_ok=True)
            image.save(root / folder / f"{seed}.png")
    return root


def finetune(*arguments):
    return main(["finetune", *map(str, arguments)])


def test_clean_photos_and_a_released_file(checkpoint, network, photos, tmp_path, capsys):
    data = ["--data", photos / "sharp", "--out", tmp_path / "run"]
    assert finetune("denoise70", "--init", checkpoint, *data, *SMALL) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "4 photos, 0 refused" in said and f"starts from denoise50 of {checkpoint}" in said
    own = load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert own.config.tasks == ("denoise70",) and own.body.query_embed.weight.shape[0] == 1
    moved = (own.head[0][0].weight - network.head[5][0].weight).abs().max()
    assert 0 < moved < 1e-4  # two steps of Adam at 2e-5
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert config["lr"] == 2e-5 and config["model"]["tasks"] == ["denoise70"] and not config["augment"]


def test_pairs_for_a_new_task_from_an_own_checkpoint(network, photos, tmp_path, capsys):
    own = tmp_path / "checkpoint.pt"
    torch.save({"format": FORMAT, "config": network.config.to_dict(), "model": network.state_dict()}, own)
    pairs = ["--pairs", photos / "sharp", photos / "blur", "--out", tmp_path / "run"]
    assert finetune("deblur", "--init", own, *pairs, *SMALL) == 0
    assert "starts from derain of" in " ".join(capsys.readouterr().err.split())
    again = ["--task", "deblur", "--checkpoint", tmp_path / "run/checkpoint.pt", "-o", tmp_path / "out.png"]
    assert main(["restore", str(photos / "blur/0.png"), *map(str, again), "--overlap", "2"]) == 0
    assert Image.open(tmp_path / "out.png").size == (80, 64)


def test_train_py_does_the_same_and_resumes(checkpoint, photos, tmp_path, capsys):
    arguments = ["--finetune", "sr2", "--init", checkpoint, "--data", str(photos / "sharp")]
    assert train([*arguments, "--out", str(tmp_path / "a"), *SMALL]) == 0
    assert finetune("sr2", *arguments[2:], "--out", tmp_path / "b", *SMALL) == 0
    a, b = (load_checkpoint(tmp_path / name / "checkpoint.pt").state_dict() for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert train([*arguments, "--out", str(tmp_path / "a"), "--resume", "auto", *SMALL, "steps=4"]) == 0
    assert "at step 2 of 4" in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_shows_the_recipe(checkpoint, photos, tmp_path, capsys):
    data = ["--data", photos / "sharp", "--out", tmp_path / "run", "--dry-run"]
    assert finetune("sr3", "--init", checkpoint, *data, *SMALL) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "finetune sr3" in said and "['sr3']" in said and "augment │ True" in said and "2e-05" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "task, change, message",
    [
        ("denoise70", {"--init": None}, "give its checkpoint with --init"),
        ("denoise70", {"--init": "nowhere.pt"}, "nowhere.pt: no such checkpoint"),
        ("denoise70", {"--init": "PHOTO"}, "not a checkpoint, or a damaged one"),
        ("denoise70", {"--data": None}, "needs either --data (clean photos, degraded here) or --pairs GT LQ"),
        ("denoise70", {"--pairs": "PAIRS"}, "needs either --data"),
        ("denoise70", {"--data": "nowhere"}, "nowhere"),
        ("deblur", {}, "there is no synthetic blur; fine-tune it on pairs"),
        ("sharpen", {}, "task 'sharpen' is not known"),
        ("sr2", {"--data": None, "--pairs": "PAIRS"}, "the clean photo must be 2 times as large"),
        ("derain", {"--data": None, "--pairs": "PAIRS", "--loader": "dali"}, "read by the torch loader alone"),
        ("sr2", {"--set": "model.num_layers=2"}, "fine-tuning takes the network as it is in --init"),
        ("sr2", {"--resume": "none.pt"}, "none.pt: no such checkpoint"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(task, change, message, checkpoint, photos, tmp_path, assert_refused):
    names = {"PHOTO": [str(photos / "sharp/0.png")], "PAIRS": [str(photos / "sharp"), str(photos / "blur")]}
    options = {"--init": checkpoint, "--data": str(photos / "sharp"), "--out": str(tmp_path / "run"), **change}
    words = [w for key, value in options.items() if value for w in (key, *names.get(value, [value]))]
    assert_refused("finetune", [task, *words], message)
    assert not (tmp_path / "run").exists()
