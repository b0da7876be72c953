"""train.py as a person starts it: real files, real loader, real degradation, a very small network."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.checkpoint import load_training_state
from ipt_fast.engine.run import main
from tests.engine.fakes import FakeLoader

ROOT = Path(__file__).resolve().parent.parent
MICRO = [
    "steps=3", "batch_size=4", "log_every=1", "checkpoint_every=2", "warmup_steps=0", "model.n_feats=4",
    "model.num_heads=3", "model.num_layers=1", "model.patch_size=12", "model.tasks=sr2,derain,denoise30",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six photos of smooth noise, and one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(6):
        small = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        small.resize((80 + i, 64)).save(folder / f"{i}.jpg", quality=95)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    return folder


def train(photos, out, *more, changes=MICRO):
    options = ["--preset", "tiny", "--out", str(out), "--loader", "torch", "--workers", "0", *more]
    return main(["--data", str(photos), *options, "--set", *changes])


def test_a_run_and_its_resumption(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "whole", changes=[*MICRO, "steps=5", "schedule=constant"]) == 0
    assert train(photos, tmp_path / "part", changes=[*MICRO, "schedule=constant"]) == 0
    assert "6 photos, 1 refused; torch loader" in capsys.readouterr().err
    assert train(photos, tmp_path / "part", changes=MICRO) == 2
    assert "holds a run already; give --resume auto" in capsys.readouterr().err
    again = ["--resume", "auto"]
    assert train(photos, tmp_path / "part", *again, changes=[*MICRO, "steps=5", "schedule=constant"]) == 0
    assert "checkpoint.pt at step 3 of 5" in capsys.readouterr().err.replace("\n", "")
    whole, part = (load_training_state(tmp_path / name / "checkpoint.pt") for name in ("whole", "part"))
    assert all(torch.equal(value, part["model"][key]) for key, value in whole["model"].items())
    lines = [json.loads(line) for line in (tmp_path / "part" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    config = json.loads((tmp_path / "part" / "config.json").read_text())
    assert config["config"]["model"]["n_feats"] == 4 and config["run"]["total_steps"] == 5


def test_dry_run_writes_nothing_and_says_everything(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run", "--dry-run", "--precision", "fp32") == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    texts = "6 photos, 1 refused", "3 steps of 4 patches", "cpu, 1 rank(s), fp32", "model.n_feats", "recomputation"
    texts += "GFLOP a patch", "no peak is known for this device, so no MFU"
    assert all(text in said for text in (*texts, "parameters"))
    assert not (tmp_path / "run").exists()


def test_dry_run_tells_what_a_stated_peak_allows(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run", "--dry-run", changes=[*MICRO, "peak_tflops=2", "rain=in[red]"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "rain in[red]" in said  # not markup
    patch, rate = (float(re.search(p, said)[1].replace(",", "")) for p in (r"([\d.]+) GFLOP", r"most ([\d,]+) pat"))
    assert rate == pytest.approx(2000 / patch, rel=0.01)


def test_named_options_are_settings(photos, tmp_path, capsys):
    options = ["--tasks", "derain", "--crops-per-image", "2", "--data-fraction", "0.5", "--precision", "bf16"]
    options += ["--epochs", "2", "--batch-size", "3", "--lr", "0.125"]
    changes = [change for change in MICRO if not re.search("tasks|^steps|batch", change)]
    assert train(photos, tmp_path, *options, "--dry-run", changes=changes) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in ("bf16", "['derain']", "4 steps of 3 patches, 2 steps an epoch", "lr │ 0.125"):
        assert text in said


@pytest.mark.parametrize(
    "options, changes, message",
    [
        ([], ["lrr=1"], "--set lrr: no such setting; did you mean lr"),
        (["--tasks", "sr5"], MICRO[:3], "task 'sr5' is not known"),
        (["--tasks", "deblur"], MICRO[:3], "deblur: there is no synthetic blur"),
        (["--precision", "fp16"], MICRO, "precision fp16 needs a GPU"),
        (["--nvtx"], MICRO, "--nvtx needs an NVIDIA GPU"),
        ([], [*MICRO, "wandb=mine"], "wandb=mine: No module named"),
        (["--resume", "nowhere.pt"], MICRO, "nowhere.pt: no such checkpoint"),
        ([], ["batch_size=1"], "needs at least 2, got 1"),
        ([], [*MICRO, "contrastive=supcon", "lam=0"], "contrastive=supcon is a setting of the contrastive loss"),
        ([], [*MICRO, "prefetch=2"], "prefetch=2 needs workers"),
        ([], [*MICRO, "schedule=constant", "lr_final=1e-6"], "lr_final=1e-06 is never reached"),
        (["--init", "a.pt", "--resume", "b.pt"], MICRO, "--resume FILE goes on with one; give one of them"),
    ],
)
def test_errors_take_one_line_and_exit_code_2(photos, tmp_path, capsys, options, changes, message):
    if torch.cuda.is_available() and "fp16" in options:
        pytest.skip("this machine has a GPU, which computes in fp16")
    assert train(photos, tmp_path / "run", *options, changes=changes) == 2
    said = capsys.readouterr().err
    assert said.startswith("train.py: ") and message in said and len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_folders_without_photos(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        assert train(tmp_path / folder, tmp_path / "run") == 2
        assert str(tmp_path / folder) in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(photos, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK nothing")
    assert train(photos, tmp_path, "--resume", "auto") == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'checkpoint.pt'}: " in said and "damaged" in said and "can be read" in said


def test_help_lists_exit_codes_and_settings(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "3 the last checkpoint could not be written" in said and "warmup_steps: linear rise" in said


def test_a_short_warmup_is_asked_for_in_a_line(photos, tmp_path, capsys):
    assert train(photos, tmp_path / "run", "--dry-run", changes=[*MICRO, "warmup_steps=3"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("WARNING: warmup_steps=3 does not end within the 3 steps") and len(said.splitlines()) == 1


# TensorBoard writes from a thread of its own, which dies of the full disk.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_without_its_last_checkpoint_has_exit_code_3(photos, tmp_path, capsys, small_files):
    assert train(photos, tmp_path / "first") == 0  # the index of the photos is written
    capsys.readouterr()
    with small_files(4096):
        assert train(photos, tmp_path / "run") == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train.py: the run ends at step 3 of 3 without its last checkpoint") and "make room" in last


@pytest.mark.parametrize("number, code, name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_before_the_first_step_is_one_line(photos, tmp_path, capsys, monkeypatch, number, code, name):
    before = signal.getsignal(number)
    monkeypatch.setattr("ipt_fast.engine.run.build_index", lambda *args, **options: signal.raise_signal(number))
    assert train(photos, tmp_path / "run") == code
    assert capsys.readouterr().err == f"train.py: stopped by {name}\n" and signal.getsignal(number) is before


def test_a_loader_that_fails_has_exit_code_4(photos, tmp_path, capsys, monkeypatch):
    class Failing(FakeLoader):
        def __iter__(self):
            for batch in super().__iter__():
                if batch.step == 2:
                    raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.\nmore")
                yield batch

    monkeypatch.setattr("ipt_fast.engine.run.make_loader", lambda *args, **options: Failing(4))
    assert train(photos, tmp_path / "run", changes=[*MICRO, "steps=9"]) == 4
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("train.py: the loader failed after step 2 of 9: RuntimeError: DataLoader")
    assert load_training_state(tmp_path / "run" / "checkpoint.pt")["step"] == 2


@pytest.mark.slow
def test_torchrun(photos, tmp_path):
    """Two ranks under torchrun itself; their first loss is that of one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    options = ["--data", str(photos), "--preset", "tiny", "--out", str(tmp_path / "two"), "--workers", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    changes = [*MICRO, "precision=fp32"]  # bfloat16 products of half a batch may round otherwise
    run = subprocess.Popen([*command, *options, "--set", *changes], cwd=ROOT, env=env, stderr=subprocess.PIPE)
    assert train(photos, tmp_path / "one", changes=changes) == 0
    _, stderr = run.communicate(timeout=180)
    assert run.returncode == 0, stderr.decode()[-2000:]
    one, two = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two"))
    for mine, theirs in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.slow
def test_torchrun_starts_killed_ranks_again_from_the_last_checkpoint(photos, tmp_path):
    """Once, as --max-restarts says: ranks that call dead ones, or wait for them, have no second try."""
    pytest.importorskip("psutil", reason="needs the extra train")
    from ipt_fast.engine.punish import KILL, disturb

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    command += [str(ROOT / "train.py"), "--data", str(photos), "--preset", "tiny", "--out", str(tmp_path / "run")]
    changes = ["steps=40", "checkpoint_every=4"]
    command += ["--workers", "0", "--resume", "auto", "--set", *MICRO, *changes]
    told = []
    disturb(command, tmp_path / "run", tmp_path / "log", steps=40, every=4, kills=1, seed=1, tell=told.append)
    (kill,) = told
    assert kill.way == KILL and kill.code is None  # torchrun itself has lived on
    assert kill.resumed % 4 == 0 and 0 <= kill.step - kill.resumed <= 4
    assert load_training_state(tmp_path / "run" / "checkpoint.pt")["step"] == 40
