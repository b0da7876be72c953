"""``ipt-fast restore --batch-photos``: windows of several photos in the same batches, each photo as if alone."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.cli import _restore_photos, main
from ipt_fast.inference.prepare import PreparedIPT
from ipt_fast.io.images import read_image
from tests.cli.test_restore import photo


def restore(*arguments):
    return main(["restore", *map(str, arguments), "--fp32"])


@pytest.fixture
def batches(monkeypatch):
    """Return the list of the numbers of windows that the network gets at once."""
    forward, seen = PreparedIPT.forward, []

    def recorded(self, x, task):
        seen.append(len(x))
        return forward(self, x, task)

    monkeypatch.setattr(PreparedIPT, "forward", recorded)
    return seen


def folder(path):
    """Write photos of many kinds and sizes, of 1 to 9 windows, and one that is none."""
    for name, size, mode in (("a.png", (64, 64), "RGB"), ("b.png", (9, 7), "RGBA"), ("d.png", (100, 90), "L")):
        photo(path / name, size, mode)
    (path / "c.png").write_bytes(b"no image")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65536, (20, 60), dtype=np.uint16)).save(path / "e.png")
    Image.fromarray(rng.random((48, 50), dtype=np.float32)).save(path / "f.tif")
    frames = [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(path / "g.gif", save_all=True, append_images=frames[1:], duration=100)
    return path


@pytest.mark.parametrize("task, jobs", [("sr2", 1), ("sr3", 0), ("sr4", 3), ("derain", 1)])
def test_outputs_are_those_of_one_photo_after_the_other(task, jobs, tmp_path, checkpoint, batches, capsys):
    said = []
    for count in (1, 4, 50):
        common = ["--task", task, "--checkpoint", checkpoint, "--jobs", jobs, "--batch-size", 8]
        common += ["--batch-photos", count] * (count > 1)
        batches.clear()
        assert restore(folder(tmp_path / "in"), "-o", tmp_path / str(count), *common, "--compare") == 1
        lines = capsys.readouterr().err.splitlines()
        said.append([line.split(" -> ")[0] for line in lines if " MP in " not in line])
        assert any(line.startswith("8 images, 0.0204 MP in ") for line in lines)  # three of them frames
    assert batches == [8, 8, 5]  # 4 + 1 + 9 + 2 + 2 + 3 windows
    assert said[0] == said[1] == said[2] and "c.png: not an image" in "".join(said[0])
    for path in sorted((tmp_path / "1").iterdir()):
        alone = read_image(path, deep=True)
        for count in ("4", "50"):
            out = read_image(tmp_path / count / path.name, deep=True)
            assert out.pixels.dtype == alone.pixels.dtype and out.pixels.shape == alone.pixels.shape
            assert np.abs(out.pixels.astype(int) - alone.pixels).max() <= 1  # of 255 or 65535
            assert (out.alpha is None) == (alone.alpha is None)
            assert getattr(Image.open(tmp_path / count / path.name), "n_frames", 1) == (1 + 2 * (path.name == "g.png"))


def test_what_was_restored_when_it_was_stopped_is_skipped(tmp_path, checkpoint, monkeypatch, capsys):
    for stem in "abcdef":
        photo(tmp_path / "in" / f"{stem}.png")
    forward, calls = PreparedIPT.forward, []

    def stopped(self, x, task):
        calls.append(len(x))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, x, task)

    monkeypatch.setattr(PreparedIPT, "forward", stopped)
    common = [
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "--task",
        "derain",
        "--checkpoint",
        checkpoint,
        "--skip-existing",
    ]
    assert restore(*common, "--batch-photos", 2) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "ipt-fast restore: stopped by Ctrl-C; 2 of 6 images restored"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert restore(*common, "--batch-photos", 3) == 0
    said = capsys.readouterr().err
    assert "skipped: 2 images" in said and "4 images, 0.0024 MP in" in said
    assert calls == [2, 2, 3, 1] and len(list((tmp_path / "out").iterdir())) == 6


def test_where_all_together_fail_each_goes_alone(tmp_path, checkpoint, monkeypatch, capsys):
    def too_large(images, way, progress):
        progress(0.5)
        raise MemoryError("no room for 2 results")

    monkeypatch.setattr(_restore_photos, "restored_together", too_large)
    for name in ("a.png", "b.png"):
        photo(tmp_path / "in" / name)
    common = ["--task", "derain", "--checkpoint", checkpoint, "--batch-photos", 2]
    assert restore(tmp_path / "in", "-o", tmp_path / "out", *common) == 0
    said = capsys.readouterr().err
    assert said.count("alone, as 2 photos together failed: no room for 2 results") == 2
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_memory_that_runs_out_is_said_once(tmp_path, checkpoint, monkeypatch, capsys):
    forward = PreparedIPT.forward

    def greedy(self, x, task):
        if len(x) > 2:
            raise torch.OutOfMemoryError("allocation failed")
        return forward(self, x, task)

    monkeypatch.setattr(PreparedIPT, "forward", greedy)
    for name in ("a.png", "b.png", "c.png"):
        photo(tmp_path / "in" / name)
    common = ["--task", "derain", "--checkpoint", checkpoint, "--batch-photos", 3]
    assert restore(tmp_path / "in", "-o", tmp_path / "out", *common) == 0
    assert capsys.readouterr().err.count("out of memory with 3 windows at once, going on with 1") == 1
    assert len(list((tmp_path / "out").iterdir())) == 3
