"""Whole processes: two ranks against one, and runs that are killed."""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ipt_fast.checkpoint import load_training_state
from ipt_fast.losses import pretrain_loss
from tests.engine.fakes import make_trainer, micro_config, run_rank


@pytest.fixture(scope="module")
def context():
    """Return processes forked from one that has imported everything and trained nothing: quick to start, and clean."""
    before = os.environ.get("PYTHONPATH")
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, before]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.fakes", "torch.utils.tensorboard"])
    yield context
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def start(context):
    """Return a function that starts the processes of a run; all are ended with the test."""
    started = []

    def start(out, steps, batch_size, *changes, ranks=1, trouble=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks}
        run = []
        for rank in range(ranks):
            own = {**group, "RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
            run.append(context.Process(target=run_rank, args=(out, own, steps, batch_size, changes, trouble)))
            run[-1].start()
        started.extend(run)
        return run

    yield start
    for process in started:
        process.kill()
        process.join()


def end(processes, code=0):
    for process in processes:
        process.join(120)
        assert process.exitcode == code


def model_of(folder):
    return load_training_state(folder / "checkpoint.pt")["model"]


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


SIX = "model.tasks=sr2,sr3,sr4,derain,denoise30,denoise50"


def assert_equal_to_rounding(trainer, folder):
    """Compare what a trainer has come to with what a run has left in a folder."""
    model, optimizer = trainer.model.state_dict(), trainer.training.optimizer.state_dict()
    state = load_training_state(folder / "checkpoint.pt")
    # Adam divides rounding by rounding where a gradient is almost zero: a few values may differ by part of a step.
    for key, value in model.items():
        assert torch.allclose(value, state["model"][key], rtol=1e-4, atol=2e-4), key
        assert (value - state["model"][key]).double().abs().mean() < 1e-6, key
    moments = state["optimizer"]["state"]
    assert set(moments) == set(optimizer["state"])
    for number, mine in optimizer["state"].items():
        assert mine["step"] == moments[number]["step"]
        assert torch.allclose(mine["exp_avg"], moments[number]["exp_avg"], rtol=1e-2, atol=1e-4), number


def in_shares(ranks):
    """Return the loss of ranks that each look at their own share of the batch alone, computed by one process."""

    def loss(y, target, feats, **options):
        shares = zip(y.chunk(ranks), target.chunk(ranks), feats.chunk(ranks), strict=True)
        parts = zip(*(pretrain_loss(*share, **options) for share in shares), strict=True)
        return tuple(torch.stack(part).mean() for part in parts)

    return loss


@pytest.mark.parametrize(
    "changes", [["clip_grad=1"], ["contrastive_scope=local", "contrastive=supcon", "lam=1"]], ids=["global", "local"]
)
def test_ranks_are_one_process_with_the_whole_batch(tmp_path, start, changes, monkeypatch):
    """One step of each task, of 12 images."""
    runs = {ranks: start(tmp_path / str(ranks), 6, 12, SIX, *changes, ranks=ranks) for ranks in (2, 3, 4)}
    for ranks, processes in runs.items():
        if changes[0] == "contrastive_scope=local":
            monkeypatch.setattr("ipt_fast.engine.step.pretrain_loss", in_shares(ranks))
        one = make_trainer(tmp_path / f"one{ranks}", micro_config(SIX, *changes, steps=6, batch_size=12))
        one.train()
        end(processes)
        lines = zip(records(tmp_path / f"one{ranks}"), records(tmp_path / str(ranks)), strict=True)
        for mine, theirs in lines:
            for key in ("loss", "l1", "contrastive", "grad_norm"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), (ranks, mine["step"], key)
        assert_equal_to_rounding(one, tmp_path / str(ranks))
        assert len(load_training_state(tmp_path / str(ranks) / "checkpoint.pt")["rng"]) == ranks


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, start):
    one = make_trainer(tmp_path / "one", micro_config("schedule=constant", steps=6, batch_size=6))
    one.train()
    make_trainer(tmp_path / "run", micro_config("schedule=constant", steps=2, batch_size=6)).train()
    for steps, ranks in ((4, 3), (6, 2)):
        end(start(tmp_path / "run", steps, 6, "schedule=constant", ranks=ranks))
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert_equal_to_rounding(one, tmp_path / "run")


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, start):
    unbroken = start(tmp_path / "whole", 8, 4)
    batch = random.SystemRandom().randint(5, 8)  # the checkpoint of step 2 is whole: that of step 4 waits for it
    end(start(tmp_path / "cut", 8, 4, trouble=("kill", batch, 0)), -signal.SIGKILL)
    assert load_training_state(tmp_path / "cut" / "checkpoint.pt")["step"] < 8
    end(start(tmp_path / "cut", 8, 4))
    end(unbroken)
    cut = model_of(tmp_path / "cut")
    assert all(torch.equal(value, cut[key]) for key, value in model_of(tmp_path / "whole").items()), batch


@pytest.mark.parametrize("where", ["staging", "writing"])
def test_a_run_killed_in_a_checkpoint_goes_on_from_the_one_before(tmp_path, start, where):
    unbroken = start(tmp_path / "whole", 6, 4)
    end(start(tmp_path / "cut", 6, 4, trouble=(where, 4, 0)), -signal.SIGKILL)
    assert load_training_state(tmp_path / "cut" / "checkpoint.pt")["step"] == 2
    assert len(list((tmp_path / "cut").glob(".*.part.pt"))) == (where == "writing")
    end(start(tmp_path / "cut", 6, 4))
    end(unbroken)
    assert sorted(path.name for path in (tmp_path / "cut").glob("*.pt")) == ["checkpoint.previous.pt", "checkpoint.pt"]
    cut = model_of(tmp_path / "cut")
    assert all(torch.equal(value, cut[key]) for key, value in model_of(tmp_path / "whole").items())


@pytest.mark.parametrize("ranks", [2, 3])  # what three numbers add up to depends on their order
def test_ranks_stop_together_and_go_on_bit_equal(tmp_path, start, ranks):
    unbroken = start(tmp_path / "whole", 7, 6, ranks=ranks)
    end(start(tmp_path / "cut", 7, 6, ranks=ranks, trouble=("term", 3, 1)), 128 + signal.SIGTERM)
    assert 3 <= load_training_state(tmp_path / "cut" / "checkpoint.pt")["step"] <= 5
    end(start(tmp_path / "cut", 7, 6, ranks=ranks))
    end(unbroken)
    cut = model_of(tmp_path / "cut")
    assert all(torch.equal(value, cut[key]) for key, value in model_of(tmp_path / "whole").items())


def test_moments_split_over_the_ranks_change_no_bit_and_resume_with_and_without(tmp_path, start):
    unbroken = start(tmp_path / "whole", 6, 4, "schedule=constant", ranks=2)
    for steps, zero in ((2, True), (4, False), (6, True)):
        end(start(tmp_path / "split", steps, 4, "schedule=constant", f"zero={zero}", ranks=2))
    end(unbroken)
    whole, split = (load_training_state(tmp_path / name / "checkpoint.pt") for name in ("whole", "split"))
    assert all(torch.equal(value, split["model"][key]) for key, value in whole["model"].items())
    mine, theirs = whole["optimizer"]["state"], split["optimizer"]["state"]
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[i][key], theirs[i][key]) for i in mine for key in ("step", "exp_avg", "exp_avg_sq"))


def test_gradients_sent_in_16_bits_are_close(tmp_path, start):
    processes = start(tmp_path / "sixteen", 1, 4, "allreduce=fp16", ranks=2)
    end(start(tmp_path / "plain", 1, 4, ranks=2))
    end(processes)
    plain, sixteen = (load_training_state(tmp_path / name / "checkpoint.pt") for name in ("plain", "sixteen"))
    pairs = [(state["exp_avg"], sixteen["optimizer"]["state"][i]["exp_avg"])
             for i, state in plain["optimizer"]["state"].items()]  # fmt: skip
    assert any(not torch.equal(mine, theirs) for mine, theirs in pairs)
    assert all(torch.allclose(mine, theirs, rtol=0.02, atol=1e-2 * float(mine.abs().max())) for mine, theirs in pairs)


def test_a_bad_sample_on_one_rank_is_skipped_by_both(tmp_path, start):
    end(start(tmp_path, 4, 4, ranks=2, trouble=("nan", 2, 1)))
    assert records(tmp_path)[-1]["skipped"] == 1
    assert all(value.isfinite().all() for value in model_of(tmp_path).values())


@pytest.mark.parametrize("rank, zero", [(0, False), (1, False), (0, True)])
def test_a_loader_that_fails_on_one_rank_ends_both_with_a_message(tmp_path, start, rank, zero):
    end(start(tmp_path, 6, 4, f"zero={zero}", ranks=2, trouble=("loader", 4, rank)), 4)
    own, other = ((tmp_path / f"error{r}").read_text() for r in (rank, 1 - rank))
    assert "loader failed after step 3 of 6: OSError: the disk is gone" in own
    assert "another rank has left the run after step 3 of 6" in other and len(other.splitlines()) == 1
    assert ("no checkpoint: with zero=true the other ranks hold parts of it" in own) == zero
    assert load_training_state(tmp_path / "checkpoint.pt")["step"] == (3 if rank == 0 and not zero else 2)


def test_ranks_end_quietly_whatever_is_imported_meanwhile(tmp_path):
    """``torch.distributed.nn`` keeps the group alive that is there when it is imported first: SIGABRT at the end."""
    script = """
import torch
import torch.distributed as dist
from ipt_fast.engine.distributed import destroy_process_group, init_distributed
init_distributed()
from torch.distributed.nn import functional
assert functional.all_reduce.__defaults__[-1] is None  # otherwise it is the group
dist.all_reduce(torch.ones(3))
destroy_process_group()
"""
    (tmp_path / "rank.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "rank.py"]
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "terminate called" not in done.stderr, done.stderr
