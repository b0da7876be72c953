"""The network that comes with the package: it is there, checked, said, and better than what comes in."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ipt_fast import TASKS, load_checkpoint, restore
from ipt_fast.checkpoint import CheckpointError, pretrained, read_notes
from ipt_fast.cli import main
from ipt_fast.data.packaged_photos import held_out_photos
from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.evaluation.metrics import psnr_y
from ipt_fast.ops import degrade
from ipt_fast.tasks import get_task

FILE = pretrained.SUM.with_suffix(".safetensors")


@pytest.fixture(scope="module")
def model():
    return load_checkpoint("pretrained")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Return a copy of the file, which stands for it until the test ends."""
    for path in (FILE, pretrained.SUM):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(pretrained, "SUM", tmp_path / pretrained.SUM.name)
    return tmp_path / FILE.name


@pytest.fixture(scope="module")
def photo():
    """Return a part of a photo that was never trained on, uint8 [1, 3, 144, 144]."""
    return next(iter(held_out_photos().values()))[None, :, 60:204, 100:244]


def test_the_header_says_what_it_is(model):
    notes = read_notes("pretrained")
    assert notes == read_notes(FILE)
    assert {"task", "scale", "preset", "range", "training_data", "training", "metrics", "licence"} <= set(notes)
    assert notes["task"].split(", ") == list(model.config.tasks) == list(TASKS)
    assert [int(r) for r in notes["scale"].split(", ")] == [get_task(task).scale for task in TASKS]


def test_the_file_is_small_and_of_half_precision():
    assert FILE.stat().st_size <= 12e6
    with safe_open(str(FILE), "pt") as file:
        dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert dtypes == {torch.float16, torch.int64}


@pytest.mark.parametrize("task", TASKS)
def test_it_makes_a_photo_better(model, photo, task):
    lq, gt = degrade(photo, task, seeds=torch.tensor([7]))
    before = bicubic_up(lq, get_task(task).scale) if get_task(task).scale > 1 else lq
    after = restore(model, lq, task)
    assert torch.isfinite(after).all()
    assert psnr_y(after, gt, border=4) > psnr_y(before, gt, border=4)


def test_one_task_of_it_and_no_network_given(model):
    x = torch.rand(1, 3, 50, 60) * 255
    alone = load_checkpoint("pretrained", "sr2")
    assert alone.config.tasks == ("sr2",)
    expected = restore(model, x, "sr2")
    assert torch.equal(restore(alone, x, "sr2"), expected) and torch.equal(restore(None, x, "sr2"), expected)
    with pytest.raises(ValueError, match="deblur"):
        restore(None, x, "deblur")


def test_another_file_is_refused(copy):
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pretrained.safetensors: not the weights that ipt-fast was packed with"):
        load_checkpoint("pretrained")
    pretrained.SUM.write_text(f"{hashlib.sha256(content).hexdigest()}  {copy.name}\n")
    assert load_checkpoint("pretrained").config.tasks == TASKS


@pytest.mark.parametrize("suffix", [".safetensors", ".sha256"])
def test_a_missing_file_is_named(copy, suffix):
    copy.with_suffix(suffix).unlink()
    with pytest.raises(FileNotFoundError, match=f"pretrained{suffix}: the weights that come with ipt-fast are"):
        restore(None, torch.zeros(1, 3, 48, 48), "sr2")


def test_the_command_takes_it_and_says_so(tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.effect_noise((60, 50), 40).convert("RGB").save(photo)
    arguments = ["restore", str(photo), "-o", str(tmp_path / "out.png"), "--task", "denoise30", "--precision", "fp32"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert said.count("the network that comes with ipt-fast") == 1
    assert np.array_equal(Image.open(tmp_path / "out.png"), restore(None, Image.open(photo), "denoise30"))
    assert main([*arguments, "--force", "--checkpoint", str(FILE)]) == 0
    assert "comes with" not in capsys.readouterr().err


def test_without_it_the_command_says_what_to_do(copy, tmp_path, capsys):
    copy.unlink()
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    assert main(["restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--task", "sr2"]) == 2
    assert "name a checkpoint" in capsys.readouterr().err
