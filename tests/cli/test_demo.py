"""ipt-fast demo with a network small enough for a test: the files, the table, and resuming a run."""

import json

import pytest

from ipt_fast.cli import main
from ipt_fast.data import packaged_photos
from ipt_fast.evaluation import held_out

pytest.importorskip("skimage", reason='the demo takes its photos from scikit-image: pip install "ipt-fast[demo]"')
pytest.importorskip("sklearn", reason='the demo takes its photos from scikit-learn: pip install "ipt-fast[demo]"')

MICRO = ["model.n_feats=4", "model.num_layers=1", "model.num_heads=2", "batch_size=2", "workers=0", "precision=fp32"]


@pytest.fixture
def small_photos(monkeypatch):
    """Cut the demo's own photos: held-out ones are restored whole."""
    held_out_photos = packaged_photos.held_out_photos
    monkeypatch.setattr(
        packaged_photos, "held_out_photos", lambda: {n: p[:, :60, :72] for n, p in held_out_photos().items()}
    )
    monkeypatch.setattr(held_out, "RAIN_DRAWS", 2)


def demo(out, *changes):
    return main(["demo", "--out", str(out), "--set", *MICRO, "--set", *changes])


def test_a_run_leaves_everything_and_is_resumed(tmp_path, small_photos, capsys):
    out = tmp_path / "run"
    assert demo(out, "steps=3") == 0
    table = capsys.readouterr().out
    assert "worse than the input, after 3 steps; the recipe of tiny has 2,000. Longer runs: --set steps=N" in table
    tasks = ["sr2", "sr3", "sr4", "derain", "denoise30", "denoise50"]
    assert all(task in table for task in tasks)
    assert sorted(path.stem for path in (out / "samples").glob("*.png")) == sorted(tasks)
    for name in ("checkpoint.pt", "config.json", "log.jsonl"):
        assert (out / name).is_file()
    assert list(out.rglob("events.out.tfevents*"))
    scores = json.loads((out / "held_out.json").read_text())
    assert list(scores) == tasks and all(10 < s["psnr_y_input"] < 60 for s in scores.values())

    assert demo(out, "steps=4") == 0
    assert "at step 3 of 4" in capsys.readouterr().err.replace("\n", "")
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_a_setting_that_does_not_exist(tmp_path, small_photos, capsys):
    assert demo(tmp_path / "run", "stepz=3") == 2
    assert "did you mean steps" in capsys.readouterr().err


def test_missing_photos_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packaged_photos, "HELD_OUT", {"skimage": ("no_such_photo.png",)})
    assert main(["demo", "--out", str(tmp_path / "run")]) == 2
    assert "no_such_photo.png" in capsys.readouterr().err and not (tmp_path / "run").exists()
