"""Training in this process: what it leaves behind, and what it survives."""

import json
import math
import resource
import signal

import pytest
import torch

from ipt_fast.checkpoint import load_training_state
from ipt_fast.engine.config import ConfigError
from ipt_fast.engine.trainer import DivergedError
from ipt_fast.model import IPT
from tests.engine.fakes import FakeLoader, fake_degrade, make_trainer, micro_config


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def said(trainer):
    return trainer.progress.console.file.getvalue()


def test_a_run_leaves_checkpoint_config_and_log(tmp_path):
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
    assert "step 6/6" in said(trainer)


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


def test_lines_of_a_cut_off_run_are_not_doubled(tmp_path):
    make_trainer(tmp_path, micro_config(steps=4)).train()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 1}\n{"step": 6, "lo')
    rest = make_trainer(tmp_path, micro_config(steps=6))
    rest.resume("auto")
    rest.train()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert "steps was 4, is 6" in said(rest)


def test_clipping_bounds_the_step(tmp_path):
    """Adam hides the length of a gradient; its first moment after one step does not."""
    trainer = make_trainer(tmp_path, micro_config("clip_grad=0.01", steps=1))
    trainer.train()
    moments = [state["exp_avg"].flatten() for state in trainer.training.optimizer.state.values()]
    assert torch.isclose(torch.cat(moments).norm(), torch.tensor(0.1 * 0.01), rtol=1e-4)


@pytest.mark.parametrize("where", ["input", "gradient"])
def test_a_bad_step_is_skipped_and_counted(tmp_path, where):
    calls = []

    def degrade(clean, task, **options):
        calls.append(task)
        x, target = fake_degrade(clean, task, **options)
        if len(calls) == 2:
            if where == "input":
                x[0, 0, 0, 0] = float("nan")
            else:
                target[0, 0, 0, 0] = float("inf")
        return x, target

    trainer = make_trainer(tmp_path, micro_config(steps=3), degrade=degrade)
    seen = []
    step = trainer.training.__call__

    def watched(*args, **kwargs):
        outcome = step(*args, **kwargs)
        seen.append(weights(trainer.model))
        return outcome

    trainer.training = _Watched(trainer.training, watched)
    summary = trainer.train()
    assert summary.skipped == 1 and summary.finished
    assert all(torch.equal(seen[0][key], value) for key, value in seen[1].items())
    assert any(not torch.equal(seen[1][key], value) for key, value in seen[2].items())
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert "step skipped" in said(trainer)


class _Watched:
    def __init__(self, training, call):
        self._training, self._call = training, call

    def __call__(self, *args, **kwargs):
        return self._call(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._training, name)


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


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
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
    assert "stopped by SIGINT" in said(trainer) and signal.getsignal(signal.SIGINT) is handler


# TensorBoard writes from a thread of its own, which dies of the full disk; the run does not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_does_not_end_the_run(tmp_path):
    def degrade(clean, task, **options):
        # From the second checkpoint on no file may grow beyond 4 kB.
        if trainer.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        if trainer.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            failed.append(load_training_state(tmp_path / "checkpoint.pt")["step"])
        return fake_degrade(clean, task, **options)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = []
    trainer = make_trainer(tmp_path, micro_config(steps=6), degrade=degrade)
    try:
        summary = trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert summary.finished and failed == [2]
    assert "WARNING: no checkpoint at step 4" in said(trainer) and "training goes on" in said(trainer)
    assert load_training_state(tmp_path / "checkpoint.pt")["step"] == 6
    assert not list(tmp_path.glob("*.tmp"))


def test_resume_auto_takes_the_previous_checkpoint_for_a_damaged_one(tmp_path):
    make_trainer(tmp_path, micro_config(steps=4)).train()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    trainer = make_trainer(tmp_path, micro_config(steps=6))
    assert trainer.resume("auto") and trainer.step == 2
    assert "WARNING" in said(trainer) and str(path) in said(trainer)


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
    "changes, world, message",
    [
        (["batch_size=1"], 1, "at least 2, got 1"),
        (["batch_size=2", "contrastive_scope=local"], 2, "2 ranks, contrastive_scope=local"),
        (["batch_size=5"], 2, "does not divide by 2 ranks"),
    ],
)
def test_batches_that_cannot_be_trained_with_are_refused_early(tmp_path, changes, world, message):
    from ipt_fast.engine.distributed import DistInfo

    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path / "run", micro_config(*changes), DistInfo(size=world))
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
    make_trainer(tmp_path, micro_config(steps=4), profile_steps=2).train()
    trace = json.loads((tmp_path / "trace_rank0.json").read_text())
    assert any("adam" in str(event.get("name", "")).lower() for event in trace["traceEvents"])


def test_kept_checkpoints(tmp_path):
    make_trainer(tmp_path, micro_config("keep_every=1", "checkpoint_every=3", steps=7)).train()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "checkpoint.previous.pt", "checkpoint.pt", "checkpoint_epoch0001.pt", "checkpoint_epoch0002.pt",
    ]  # fmt: skip
