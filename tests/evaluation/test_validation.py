"""Validation while a network trains: its scores, what is logged, and that the best checkpoint is kept."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.checkpoint import load_training_state
from ipt_fast.engine.run import main as train
from ipt_fast.evaluation.metrics import psnr_y
from ipt_fast.evaluation.validation import Validation
from ipt_fast.inference import restore
from ipt_fast.io.images import read_rgb
from ipt_fast.model import IPT
from tests.engine.fakes import MICRO, make_trainer, micro_config


@pytest.fixture
def photos(tmp_path):
    """Clean photos of odd sizes in ``gt``, and in ``lq`` partners of half the size."""
    for folder in ("gt/a", "lq/a"):
        (tmp_path / folder).mkdir(parents=True)
    for i in range(3):
        photo = Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)).resize((61 + i, 47))
        photo.save(tmp_path / f"gt/a/{i}.png")
        photo.resize(((61 + i) // 2, 23)).save(tmp_path / f"lq/a/{i}x2.png")
    return tmp_path


def test_scores_are_those_of_restoration_and_nothing_else_changes(photos):
    model = IPT(MICRO).train()
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    validation = Validation([photos / "gt", photos / "lq"], ["sr2"])
    scores = validation(model)
    wanted = []
    for i in range(3):
        gt, lq = read_rgb(photos / f"gt/a/{i}.png"), read_rgb(photos / f"lq/a/{i}x2.png")
        out = restore(model, lq.float(), "sr2", overlap=1)
        wanted.append(psnr_y(out, gt[:, : out.shape[1], : out.shape[2]].float(), border=2).item())
    assert scores == {"sr2": pytest.approx(sum(wanted) / 3, abs=1e-6)} and validation(model) == scores
    assert len(validation) == 3 and model.training and torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_clean_photos_are_degraded_alike_for_every_network(photos):
    validation = Validation([photos / "gt"], MICRO.tasks)
    model = IPT(MICRO)
    scores = validation(model)
    assert list(scores) == list(MICRO.tasks) and all(0 < score < 60 for score in scores.values())
    assert validation(model) == scores == Validation([photos / "gt"], MICRO.tasks)(model)


@pytest.mark.parametrize(
    "folders, tasks, message",
    [
        (["none"], ["sr2"], "none: no such folder of validation photos"),
        (["empty"], ["sr2"], "empty: no photos to validate on"),
        (["gt", "lq"], ["sr2", "derain"], "validation pairs are of one task, this run has sr2, derain"),
        (["gt", "lq"], ["sr3"], "has no partner"),
        (["gt", "gt"], ["sr2"], "is no folder with both sides of pairs, .* such as sharp and blur"),
    ],
)
def test_photos_that_cannot_serve_are_named(photos, folders, tasks, message):
    (photos / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        Validation([photos / name for name in folders], tasks)


def test_the_best_checkpoint_is_kept_and_remembered(tmp_path, caplog):
    caplog.set_level("INFO", logger="ipt_fast")
    scores = iter([20.0, 30.0, 25.0, 29.0, 31.0])

    def validate(model):
        return {"sr2": next(scores), "derain": 30.0}

    make_trainer(tmp_path, micro_config(steps=6), validate=validate).train()  # at steps 2, 4 and 6
    assert load_training_state(tmp_path / "best.pt")["step"] == 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert logged[4] == {"psnr": 30.0, "sr2": 30.0, "derain": 30.0} and list(logged) == [2, 4, 6]
    assert "step 4/6 · validation 30.00 dB (sr2 30.00, derain 30.00) · the best so far" in caplog.text
    for last, best in ((8, 4), (10, 10)):
        rest = make_trainer(tmp_path, micro_config(steps=last), validate=validate)
        assert rest.resume("auto")
        rest.train()
        assert load_training_state(tmp_path / "best.pt")["step"] == best
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_scores_reach_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_trainer(tmp_path, micro_config(steps=2), validate=lambda model: {"sr2": 20.0, "derain": 30.0}).train()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("validation/psnr")] == [25.0]


def test_validation_changes_no_weight(photos):
    runs = [
        make_trainer(photos / name, micro_config("ema=0.5", steps=4), validate=validate)
        for name, validate in (("without", None), ("with", Validation([photos / "gt"], MICRO.tasks)))
    ]
    for run in runs:
        run.train()
    one, two = (run.model.state_dict() for run in runs)
    assert all(torch.equal(value, two[key]) for key, value in one.items()) and (photos / "with/best.pt").exists()


def test_the_command_validates(photos, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (80, 80, 3), np.uint8)).save(data / f"{i}.png")
    options = ["--data", str(data), "--preset", "tiny", "--loader", "torch", "--workers", "0", "--precision", "fp32"]
    changes = ["steps=2", "batch_size=2", "model.n_feats=4", "model.num_heads=3", "model.num_layers=1"]
    run = [*options, "--out", str(tmp_path / "run"), "--set", *changes, "model.patch_size=12", "model.tasks=sr2,derain"]
    assert train([*run, "--val", str(photos / "gt")]) == 0
    said = capsys.readouterr().err
    assert "3 held out for validation" in said and "the best so far" in said and (tmp_path / "run/best.pt").exists()
    for val, message in (([data], "these photos are trained on"), ([data, photos], "with --pairs two: GT LQ")):
        assert train([*run, "--val", *map(str, val)]) == 2
        assert message in capsys.readouterr().err
