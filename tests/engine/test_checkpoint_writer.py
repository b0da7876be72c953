"""Checkpoints that are written while training goes on."""

import threading

import pytest
import torch

from ipt_fast.checkpoint import load_training_state, save_checkpoint
from ipt_fast.engine.checkpoint_writer import CheckpointWriter, stage
from tests.engine.fakes import fake_degrade, make_trainer, micro_config


def test_a_staged_state_is_equal_and_stays_as_it_is():
    weight = torch.arange(6.0).view(2, 3)
    state = {"model": {"w": weight, "row": weight[1]}, "rng": [torch.get_rng_state(), (3, (1, 2), None)], "lr": 0.5}
    staged = stage(state)
    weight.zero_()
    assert staged["model"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]] and staged["model"]["row"].tolist() == [3, 4, 5]
    assert staged["model"]["row"].untyped_storage().nbytes() == 12  # not the whole weight
    assert torch.equal(staged["rng"][0], state["rng"][0]) and staged["rng"][1:] == [(3, (1, 2), None)]
    assert staged["lr"] == 0.5


def test_a_second_write_waits_for_the_first_and_each_says_how_it_went():
    writer, order, go = CheckpointWriter(torch.device("cpu")), [], threading.Event()

    def write(state):
        order.append(("begin", state["step"]))
        assert go.wait(30)
        order.append(("end", state["step"]))
        return f"step {state['step']} failed"

    assert writer.wait() is None
    writer.start({"step": 1}, write)
    threading.Timer(0.05, go.set).start()
    writer.start({"step": 2}, write)
    assert order[:2] == [("begin", 1), ("end", 1)]
    assert writer.wait() == writer.wait() == "step 2 failed"


@pytest.fixture
def saved(monkeypatch):
    """Return (step, whether it is written by the thread that trains) of each checkpoint of a run, in order."""
    saved = []

    def save(path, state):
        saved.append((state["step"], threading.current_thread() is threading.main_thread()))
        save_checkpoint(path, state)

    monkeypatch.setattr("ipt_fast.engine.trainer.save_checkpoint", save)
    return saved


def test_training_goes_on_meanwhile_and_the_checkpoint_is_that_of_its_step(tmp_path, monkeypatch):
    make_trainer(tmp_path / "two", micro_config("schedule=constant", steps=2)).train()
    stepped = threading.Event()

    def save(path, state):
        assert stepped.wait(30), "training waits for the checkpoint"
        save_checkpoint(path, state)

    def degrade(*args, **options):
        if trainer.step == 3:
            assert not (tmp_path / "run/checkpoint.pt").exists()
            stepped.set()
        return fake_degrade(*args, **options)

    monkeypatch.setattr("ipt_fast.engine.trainer.save_checkpoint", save)
    trainer = make_trainer(tmp_path / "run", micro_config("schedule=constant", steps=4), degrade=degrade)
    trainer.train()
    mine = load_training_state(tmp_path / "run/checkpoint.previous.pt")
    theirs = load_training_state(tmp_path / "two/checkpoint.pt")
    assert mine["step"] == theirs["step"] == 2
    assert all(torch.equal(value, mine["model"][key]) for key, value in theirs["model"].items())
    for number, moments in theirs["optimizer"]["state"].items():
        assert all(torch.equal(value, mine["optimizer"]["state"][number][key]) for key, value in moments.items())


@pytest.mark.parametrize("minutes, steps", [("1e-9", [2, 4, 5]), ("1e9", [5])])
def test_checkpoints_by_the_clock(tmp_path, saved, minutes, steps):
    config = micro_config(f"checkpoint_minutes={minutes}", "checkpoint_every=3", "log_every=2", steps=5)
    make_trainer(tmp_path, config).train()
    assert saved == [(step, False) for step in steps]
