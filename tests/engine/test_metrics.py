"""log.jsonl, the TensorBoard log, Weights & Biases, and the sums in them."""

import json
import sys
import types

import pytest
import torch

from ipt_fast.engine.metrics import Meter, RunLog
from ipt_fast.engine.step import StepResult


def test_lines_and_nested_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0)
    log.write({"step": 1, "loss": 2.5, "l1_of_task": {"sr2": 3.0}, "decode_ms": None})
    log.write({"step": 2, "loss": float("nan")})
    log.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [2.5, None]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "l1_of_task/sr2"}


def test_tensorboard_is_optional_and_its_absence_logged(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="ipt_fast")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(tmp_path, 0)
    log.write({"step": 1, "loss": 2.5})
    log.close()
    assert len(caplog.messages) == 1 and "tensorboard is not installed" in caplog.messages[0]
    assert (tmp_path / "log.jsonl").exists() and not (tmp_path / "tensorboard").exists()


def test_a_log_that_cannot_be_written_is_warned_of_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(tmp_path, 0)
    (tmp_path / "log.jsonl").mkdir()
    for step in (1, 2):
        log.write({"step": step})
    assert len([line for line in caplog.messages if "the log cannot be written" in line]) == 1


def test_the_meter_takes_means_of_good_steps_and_counts_the_others():
    meter = Meter(torch.device("cpu"))
    for l1, skipped, rescaled in [
        (1.0, False, False),
        (float("nan"), True, False),
        (5.0, True, True),
        (3.0, False, False),
    ]:
        meter.batch(0.0, 8, 10**12)
        meter.result(StepResult(l1 + 1, l1, 10.0, 0.5, skipped, rescaled, False), "sr2", 0.0)
    record = meter.record()
    assert (record["loss"], record["l1"], record["contrastive"], record["grad_norm"]) == (3.0, 2.0, 10.0, 0.5)
    assert (record["skipped"], record["rescaled"], record["l1_of_task"]) == (1, 1, {"sr2": 2.0})
    meter.batch(0.0, 8, 10**12)
    meter.result(StepResult(9.0, 8.0, 10.0, 0.5, False, False, False), "sr2", 0.0)
    record = meter.record()
    assert record["mfu_pct"] is None
    assert (record["l1"], record["skipped"]) == (8.0, 1)  # means since the last line, counts of the whole run


def test_flops_a_second_and_their_share_of_the_peak(monkeypatch):
    meter = Meter(torch.device("cpu"), peak=4e12)
    for _ in range(3):
        meter.batch(0.0, 8, 10**12)
    begun = meter.since.begun
    monkeypatch.setattr("ipt_fast.engine.metrics.time.perf_counter", lambda: begun + 2.0)
    record = meter.record()
    assert (record["tflops"], record["mfu_pct"], record["patches_per_s"]) == (1.5, 37.5, 12.0)


def test_weights_and_biases_gets_the_numbers_and_a_resumed_run_is_the_same_there(tmp_path, monkeypatch):
    begun, logged = [], []

    class Run:
        def log(self, numbers, step):
            logged.append((step, numbers))

        def finish(self):
            logged.append("finished")

    wandb = types.SimpleNamespace(init=lambda **options: begun.append(options) or Run())
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 1):
        log = RunLog(tmp_path, step, "ipt", {"lr": 1e-3})
        log.write({"step": step + 1, "loss": 2.5, "l1_of_task": {"sr2": 3.0}, "mfu_pct": None})
        log.close()
    numbers = {"train/loss": 2.5, "l1_of_task/sr2": 3.0}
    assert logged == [(1, numbers), "finished", (2, numbers), "finished"]
    assert begun[0] == begun[1] and begun[0]["project"] == "ipt" and begun[0]["config"] == {"lr": 1e-3}
    assert begun[0]["resume"] == "allow" and begun[0]["name"] == tmp_path.name
    RunLog(tmp_path / "..", 0).close()
    assert len(begun) == 2  # not without a project


def test_weights_and_biases_that_is_not_installed_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r'wandb=ipt: .*pip install "ipt-fast\[wandb\]"'):
        RunLog(tmp_path, 0, "ipt")
