"""Checkpoints: what is written can be read, and what is damaged is said to be."""

import logging
import os

import pytest
import torch

from ipt_fast.checkpoint import CheckpointError, load_training_state, newest_good, save_checkpoint


def state(step=1):
    keys = ("config", "optimizer", "scaler", "schedule", "rng", "loader")
    return {**{key: {} for key in keys}, "model": {"w": torch.full((1000,), float(step))}, "step": step, "epoch": 0}


def test_the_latest_two_are_kept(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2, 3):
        save_checkpoint(path, state(step))
    assert load_training_state(path)["step"] == 3
    assert load_training_state(tmp_path / "checkpoint.previous.pt")["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def no_links(*args):
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoint.pt", state(step))
    assert load_training_state(tmp_path / "checkpoint.previous.pt")["step"] == 1


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_last_good_one(tmp_path, monkeypatch, moment):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, state(2))
    assert load_training_state(path)["step"] == 1
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path, small_files):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state(1))
    with small_files(2000), pytest.raises(OSError, match=str(path)):
        save_checkpoint(path, state(2))
    assert load_training_state(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_what_a_killed_save_left_goes_with_the_next(tmp_path):
    (tmp_path / ".checkpoint.0a1b2c3d.part.pt").write_bytes(b"half")
    save_checkpoint(tmp_path / "checkpoint.pt", state())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def flip(data):
    data[data.index(b"\x00\x00\x80\x3f" * 8) + 6] ^= 0x10  # inside the weights, which are all 1
    return data


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"", "damaged"),
        (lambda data: b"\xff\xd8 a photo", "damaged"),
        (flip, r"the checksum of .*data/0 does not fit"),
    ],
    ids=["truncated", "empty", "foreign", "one bit"],
)
def test_damage_is_found_and_the_file_named(tmp_path, damage, message):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state())
    path.write_bytes(bytes(damage(bytearray(path.read_bytes()))))
    with pytest.raises(CheckpointError, match=message) as error:
        load_training_state(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt: holds no training state .* --init"):
        load_training_state(path)
    torch.save({"format": "ipt-fast/1", "model": {}}, path)
    with pytest.raises(CheckpointError, match="incomplete checkpoint, without config, epoch"):
        load_training_state(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_training_state(tmp_path / "none.pt")


def test_the_newest_good_one_is_found(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    assert newest_good(tmp_path) is None
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoint.pt", state(step))
    path, found = newest_good(tmp_path)
    assert (path.name, found["step"], caplog.messages) == ("checkpoint.pt", 2, [])
    path.write_bytes(b"")
    path, found = newest_good(tmp_path)
    assert (path.name, found["step"]) == ("checkpoint.previous.pt", 1)
    assert len(caplog.messages) == 1 and "checkpoint.pt: damaged" in caplog.messages[0]
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        newest_good(tmp_path)
