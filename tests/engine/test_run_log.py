"""log.jsonl and the TensorBoard log."""

import json
import sys

import pytest

from ipt_fast.engine.run_log import RunLog


def test_lines_and_nested_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0, print)
    log.write({"step": 1, "loss": 2.5, "l1_of_task": {"sr2": 3.0}, "decode_ms": None})
    log.write({"step": 2, "loss": float("nan")})
    log.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [2.5, None]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "l1_of_task/sr2"}


def test_tensorboard_is_optional_and_its_absence_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = []
    log = RunLog(tmp_path, 0, said.append)
    log.write({"step": 1, "loss": 2.5})
    log.close()
    assert len(said) == 1 and "tensorboard is not installed" in said[0]
    assert (tmp_path / "log.jsonl").exists() and not (tmp_path / "tensorboard").exists()


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = []
    log = RunLog(tmp_path, 0, said.append)
    (tmp_path / "log.jsonl").mkdir()
    for step in (1, 2):
        log.write({"step": step})
    assert len([line for line in said if "the log cannot be written" in line]) == 1
