"""Training in this process: what it leaves behind, and what it survives."""

import contextlib
import json
import math
import multiprocessing
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.checkpoint import load_training_state
from ipt_fast.data import build_index, make_loader
from ipt_fast.engine.config import ConfigError
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.precision import LossScale
from ipt_fast.engine.trainer import DivergedError, LoaderError, NotSavedError
from ipt_fast.engine.watch import Watch
from ipt_fast.model import IPT
from tests.engine.fakes import FakeLoader, fake_degrade, make_trainer, micro_config, wait_until


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def said(caplog):
    """Return what the library has logged, from INFO on."""
    caplog.set_level("INFO", logger="ipt_fast")
    return lambda: caplog.text


def test_a_run_leaves_checkpoint_config_and_log(tmp_path, said):
    trainer = make_trainer(tmp_path, micro_config())
    before = weights(trainer.model)
    summary = trainer.train()
    assert summary.finished and summary.step == 6 and summary.signal is None
    assert any(not torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())
    state = load_training_state(tmp_path / "checkpoint.pt")
    assert state["step"] == 6 and state["epoch"] == 2 and state["loader"]["position"] == 6
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"]["lr"] == 1e-3 and config["run"]["precision"] == "fp32"
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert math.isclose(line["loss"], line["l1"] + 0.1 * line["contrastive"], rel_tol=1e-5)
        assert {"data_stall_pct", "decode_ms", "degrade_ms", "patches_per_s", "eta_s", "lr"} <= set(line)
    assert list((tmp_path / "tensorboard").iterdir())
    assert trainer.loader.closed
    assert "step 6/6" in said()


def test_training_learns(tmp_path):
    trainer = make_trainer(tmp_path, micro_config("log_every=10", "lr=3e-3", "model.tasks=denoise30", steps=60))
    trainer.train()
    losses = [json.loads(line)["l1"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]


def test_heads_and_tails_without_a_batch_are_left_alone(tmp_path):
    trainer = make_trainer(tmp_path, micro_config(steps=3), loader=FakeLoader(4, tasks=("derain",)))
    before = weights(trainer.model)
    trainer.train()
    changed = {key for key, value in trainer.model.state_dict().items() if not torch.equal(before[key], value)}
    assert any(key.startswith("head.1.") for key in changed) and any(key.startswith("tail.1.") for key in changed)
    assert not [key for key in changed if key.startswith(("head.0.", "head.2.", "tail.0.", "tail.2."))]
    optimizer = trainer.training.optimizer
    assert not any(p in optimizer.state for p in trainer.model.head[0].parameters())


@pytest.mark.parametrize("changes", [["ema=0.9"], ["clip_grad=0.5"], ["precision=bf16"], ["lam=0"]])
def test_resume_in_the_middle_is_bit_equal(tmp_path, changes):
    whole = make_trainer(tmp_path / "whole", micro_config(*changes))
    whole.train()

    def degrade(*args, **options):
        if part.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return fake_degrade(*args, **options)

    part = make_trainer(tmp_path / "part", micro_config(*changes), degrade=degrade)
    assert part.train().signal == signal.SIGTERM
    rest = make_trainer(tmp_path / "part", micro_config(*changes))
    assert rest.resume("auto") and rest.step == part.step and 3 <= rest.step <= 4
    rest.train()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[key]), key
    if "ema=0.9" in changes:
        ema = whole.training.ema.state_dict()
        assert all(torch.equal(ema[key], value) for key, value in rest.training.ema.state_dict().items())
        assert not torch.equal(ema["head.1.0.weight"], whole.model.state_dict()["head.1.0.weight"])
    lines = (tmp_path / "part" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_lines_of_a_cut_off_run_are_not_doubled(tmp_path, said):
    make_trainer(tmp_path, micro_config(steps=4)).train()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 1}\n{"step": 6, "lo')
    rest = make_trainer(tmp_path, micro_config(steps=6))
    rest.resume("auto")
    rest.train()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert "steps was 4, is 6" in said()


def test_clipping_bounds_the_step(tmp_path):
    """Adam hides the length of a gradient; its first moment after one step does not."""
    trainer = make_trainer(tmp_path, micro_config("clip_grad=0.01", steps=1))
    trainer.train()
    moments = [state["exp_avg"].flatten() for state in trainer.training.optimizer.state.values()]
    assert torch.isclose(torch.cat(moments).norm(), torch.tensor(0.1 * 0.01), rtol=1e-4)


def test_a_bound_above_the_norm_changes_nothing(tmp_path):
    moments = []
    for name, change in (("free", "clip_grad=0"), ("bound", "clip_grad=1e6")):
        trainer = make_trainer(tmp_path / name, micro_config(change, steps=1))
        trainer.train()
        moments.append([state["exp_avg"] for state in trainer.training.optimizer.state.values()])
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.parametrize("where", ["input", "gradient"])
def test_a_bad_step_is_skipped_and_counted(tmp_path, where, said):
    before = []  # the weights, each step

    def degrade(clean, task, **options):
        before.append(weights(trainer.model))
        x, target = fake_degrade(clean, task, **options)
        if len(before) == 2:
            if where == "input":
                x[0, 0, 0, 0] = float("nan")
            else:
                target[0, 0, 0, 0] = float("inf")
        return x, target

    trainer = make_trainer(tmp_path, micro_config(steps=3), degrade=degrade)
    summary = trainer.train()
    assert summary.skipped == 1 and summary.finished
    assert any(not torch.equal(before[0][key], value) for key, value in before[1].items())
    assert all(torch.equal(before[1][key], value) for key, value in before[2].items())
    assert any(not torch.equal(before[2][key], value) for key, value in trainer.model.state_dict().items())
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert "step skipped near" in said()


def test_many_bad_steps_in_a_row_end_the_run_with_good_weights(tmp_path):
    def degrade(clean, task, **options):
        x, target = fake_degrade(clean, task, **options)
        return x * float("nan"), target

    trainer = make_trainer(tmp_path, micro_config("max_bad_steps=3", steps=20), degrade=degrade)
    before = weights(trainer.model)
    with pytest.raises(DivergedError, match=r"3 steps in a row .*lr=0.001"):
        trainer.train()
    state = load_training_state(tmp_path / "checkpoint.pt")
    assert all(torch.equal(before[key], value) for key, value in state["model"].items())


def test_ctrl_c_finishes_the_step_and_saves(tmp_path, said):
    calls = []

    def degrade(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return fake_degrade(*args, **options)

    handler = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path, micro_config(steps=50), degrade=degrade)
    summary = trainer.train()
    assert summary.signal == signal.SIGINT and not summary.finished
    assert 3 <= summary.step <= 5
    assert load_training_state(tmp_path / "checkpoint.pt")["step"] == summary.step
    assert "stopped by SIGINT" in said() and signal.getsignal(signal.SIGINT) is handler


# TensorBoard writes from a thread of its own, which dies of the full disk; the run does not.
full_disk = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@full_disk
def test_a_full_disk_does_not_end_the_run(tmp_path, small_files, said):
    """The checkpoint of step 4 of 6 fails."""

    def degrade(clean, task, **options):
        if trainer.step == 3:
            disk.enter_context(small_files(4096))
        if trainer.step == 5:
            wait_until(lambda: "no checkpoint at step 4" in said())
            disk.close()
            failed.append(load_training_state(tmp_path / "checkpoint.pt")["step"])
        return fake_degrade(clean, task, **options)

    failed = []
    trainer = make_trainer(tmp_path, micro_config(steps=6), degrade=degrade)
    with contextlib.ExitStack() as disk:
        summary = trainer.train()
    assert summary.finished and failed == [2]
    assert "no checkpoint at step 4" in said() and "training goes on" in said()
    assert load_training_state(tmp_path / "checkpoint.pt")["step"] == 6
    assert not list(tmp_path.glob("*.tmp"))


@full_disk
@pytest.mark.parametrize("checkpoint_every", [1, 100])
def test_a_run_whose_last_checkpoint_is_missing_has_failed(tmp_path, small_files, checkpoint_every):
    trainer = make_trainer(tmp_path, micro_config(f"checkpoint_every={checkpoint_every}", steps=2))
    with small_files(4096), pytest.raises(NotSavedError, match=r"step 2 of 2 .*checkpoint\.pt: .*; make room in"):
        trainer.train()
    assert not (tmp_path / "checkpoint.pt").exists() and trainer.loader.closed
    assert trainer.train().finished  # there is room again: asked again, it writes what it has
    assert load_training_state(tmp_path / "checkpoint.pt")["step"] == 2


class FailingLoader(FakeLoader):
    def __iter__(self):
        for batch in super().__iter__():
            if batch.step == 3:
                self.position -= 1
                raise OSError("the disk is gone\nand more")
            yield batch


def test_a_loader_that_fails_leaves_a_checkpoint_to_go_on_from(tmp_path):
    whole = make_trainer(tmp_path / "whole", micro_config())
    whole.train()
    trainer = make_trainer(tmp_path / "cut", micro_config("checkpoint_every=100"), loader=FailingLoader(4))
    message = r"the loader failed after step 3 of 6: OSError: the disk is gone; .*checkpoint\.pt holds the steps before"
    with pytest.raises(LoaderError, match=message):
        trainer.train()
    assert trainer.loader.closed
    rest = make_trainer(tmp_path / "cut", micro_config())
    assert rest.resume("auto") and rest.step == 3
    rest.train()
    assert all(torch.equal(value, rest.model.state_dict()[key]) for key, value in whole.model.state_dict().items())


def test_a_killed_worker_ends_the_run_between_two_steps(tmp_path):
    """The system kills the largest process when memory is short. The checkpoint holds whole steps."""
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (80, 80, 3), np.uint8)).save(tmp_path / f"{i}.png")
    config = micro_config("checkpoint_every=1000", steps=1000)
    loader = make_loader(
        build_index([tmp_path]), loader="torch", tasks=config.model.tasks, batch_size=4, patch_size=12, workers=1
    )

    def degrade(*args, **options):
        if trainer.step == 3:
            for child in multiprocessing.active_children():
                child.kill()
            time.sleep(1)  # its signal reaches this process here, in the middle of a step
        return fake_degrade(*args, **options)

    trainer = make_trainer(tmp_path / "run", config, loader=loader, degrade=degrade)
    with pytest.raises(LoaderError, match=r"failed after step \d+ of 1000: .*checkpoint\.pt holds .*--workers"):
        trainer.train()
    state = load_training_state(tmp_path / "run" / "checkpoint.pt")
    assert 4 <= state["step"] == state["loader"]["step"] < 1000
    assert max(int(moments["step"]) for moments in state["optimizer"]["state"].values()) == state["step"]


def test_resume_auto_takes_the_previous_checkpoint_for_a_damaged_one(tmp_path, said):
    make_trainer(tmp_path, micro_config(steps=4)).train()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    trainer = make_trainer(tmp_path, micro_config(steps=6))
    assert trainer.resume("auto") and trainer.step == 2
    assert "WARNING" in said() and str(path) in said()


def test_nothing_is_loaded_from_a_checkpoint_of_another_network(tmp_path):
    make_trainer(tmp_path, micro_config(steps=1)).train()
    other = make_trainer(tmp_path, micro_config("model.num_layers=2", "model.n_feats=8"))
    before = weights(other.model)
    with pytest.raises(RuntimeError, match=r"checkpoint\.pt: holds another network: .* and \d+ more"):
        other.resume("auto")
    assert all(torch.equal(before[key], value) for key, value in other.model.state_dict().items())
    assert other.step == 0
    batch = make_trainer(tmp_path, micro_config(batch_size=8))
    with pytest.raises(RuntimeError, match=r"checkpoint\.pt: the state was taken with global_batch=4"):
        batch.resume("auto")


@pytest.mark.parametrize(
    "changes, ranks, message",
    [
        (["batch_size=1"], 1, "at least 2, got 1"),
        (["batch_size=2", "contrastive_scope=local"], 2, "2 ranks, contrastive_scope=local"),
        (["batch_size=5"], 2, "does not divide by 2 ranks"),
    ],
)
def test_batches_that_cannot_be_trained_with_are_refused_early(tmp_path, changes, ranks, message):
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path / "run", micro_config(*changes), DistInfo(world_size=ranks))
    assert not (tmp_path / "run").exists()


def test_the_seed_decides_the_weights(tmp_path):
    one, same, other = (make_trainer(tmp_path, micro_config(f"seed={seed}")).model for seed in (1, 1, 2))
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in one.state_dict().items())
    assert not torch.equal(one.head[0][0].weight, other.head[0][0].weight)


def test_a_given_model_is_trained(tmp_path):
    config = micro_config(steps=1)
    model = IPT(config.model)
    trainer = make_trainer(tmp_path, config, model=model)
    trainer.train()
    assert trainer.model is model


def test_profile_writes_a_trace(tmp_path):
    make_trainer(tmp_path, micro_config(steps=4), watch=Watch(trace_steps=2)).train()
    trace = json.loads((tmp_path / "trace_rank0.json").read_text())
    assert any("adam" in str(event.get("name", "")).lower() for event in trace["traceEvents"])


def test_kept_checkpoints(tmp_path):
    make_trainer(tmp_path, micro_config("keep_every=1", "checkpoint_every=3", steps=7)).train()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "checkpoint.previous.pt", "checkpoint.pt", "checkpoint_epoch0001.pt", "checkpoint_epoch0002.pt",
    ]  # fmt: skip


def test_checkpoints_are_kept_at_their_epochs_whatever_the_steps_between(tmp_path):
    make_trainer(tmp_path, micro_config("keep_every=1", "checkpoint_every=100", steps=7)).train()
    kept = {path.name: load_training_state(path)["step"] for path in tmp_path.glob("checkpoint_epoch*.pt")}
    assert kept == {"checkpoint_epoch0001.pt": 3, "checkpoint_epoch0002.pt": 6}


def test_a_trace_that_the_run_is_too_short_for_is_warned_of(tmp_path, said):
    make_trainer(tmp_path, micro_config(steps=4), watch=Watch(trace_steps=3)).train()
    assert "no trace: one of 3 steps needs 5, and the run has 4 left" in said()
    assert not (tmp_path / "trace_rank0.json").exists()
    with pytest.raises(ConfigError, match="to profile must be at least 0"):
        Watch(trace_steps=-1)


def test_the_average_of_the_weights_follows_them(tmp_path):
    trainer = make_trainer(tmp_path, micro_config("ema=0.75", steps=1))
    start = weights(trainer.model)
    trainer.train()
    state = load_training_state(tmp_path / "checkpoint.pt")
    for key, value in state["ema"].items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.75 * start[key] + 0.25 * state["model"][key], atol=1e-6), key
    assert any(not torch.equal(value, state["ema"][key]) for key, value in state["model"].items())


def test_each_step_has_its_learning_rate(tmp_path):
    config = micro_config("warmup_steps=4", "lr=4e-3", "lr_final=1e-3", "lr_drop_at=0.7", steps=6)
    rates = []

    def degrade(*args, **options):
        rates.append(trainer.training.optimizer.param_groups[0]["lr"])  # of the step before
        return fake_degrade(*args, **options)

    trainer = make_trainer(tmp_path, config, degrade=degrade)
    trainer.train()
    assert rates[1:] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 1e-3])
    logged = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 1e-3, 1e-3])


def scaled(out, factor, *changes, degrade=fake_degrade):
    """Return a run with the loss scale of fp16, in fp32: what it does shows without a GPU."""
    trainer = make_trainer(out, micro_config(*changes, steps=4), degrade=degrade)
    trainer.training.scale = LossScale(True, torch.device("cpu"), start=factor)
    return trainer


@pytest.mark.parametrize("changes", [[], ["clip_grad=0.01"]])
def test_the_loss_scale_changes_no_weight(tmp_path, changes):
    """A power of two is exact in floating point."""
    plain = make_trainer(tmp_path / "plain", micro_config(*changes, steps=4))
    plain.train()
    trainer = scaled(tmp_path / "scaled", 2.0**10, *changes)
    trainer.train()
    assert all(torch.allclose(value, trainer.model.state_dict()[key]) for key, value in weights(plain.model).items())
    one, two = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("plain", "scaled"))
    for mine, theirs in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_a_loss_scale_too_high_is_lowered_and_is_no_divergence(tmp_path):
    trainer = scaled(tmp_path, 2.0**127, "max_bad_steps=1")
    start = weights(trainer.model)
    summary = trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert summary.finished and summary.skipped == 0 and lines[-1]["rescaled"] == 4
    assert float(trainer.training.scale.factor) == 2.0**123
    assert all(torch.equal(start[key], value) for key, value in weights(trainer.model).items())


@pytest.mark.parametrize("change", ["contrastive=supcon", "lam=1"])
def test_settings_of_the_loss_reach_it(tmp_path, change):
    plain, other = (make_trainer(tmp_path, micro_config(*changes, steps=1)) for changes in ([], [change]))
    batch = next(iter(FakeLoader(4)))
    x, target = plain.training.prepare(batch)
    one, two = (trainer.training(x, target, batch.task, 1e-3).read() for trainer in (plain, other))
    assert one.l1 == two.l1 and abs(one.total - two.total) > 1e-3
