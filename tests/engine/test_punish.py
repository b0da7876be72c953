"""Killing a training over and over. Most runs here are stand-ins for one, which start at once."""

import copy
import sys
from pathlib import Path

import pytest
import torch

from ipt_fast.checkpoint import load_training_state, save_checkpoint
from ipt_fast.cli import main
from tests.engine.fakes import make_trainer, micro_config
from tests.engine.punished import EVERY, STEPS

psutil = pytest.importorskip("psutil", reason="needs the extra train")
from ipt_fast.engine.punish import IN_CHECKPOINT, TERM, WAYS, PunishError, differences, disturb, split_command  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a finished run."""
    out = tmp_path_factory.mktemp("trained")
    make_trainer(out, micro_config(steps=2)).train()
    return out


@pytest.fixture
def command(trained, tmp_path, monkeypatch):
    """Return the stand-in; its last checkpoint is that of ``trained``."""
    monkeypatch.setenv("PUNISHED", str(trained / "checkpoint.pt"))
    monkeypatch.delenv("RANK", raising=False)
    return [sys.executable, str(ROOT / "tests/engine/punished.py"), "--out", str(tmp_path / "run")]


def test_kills_of_every_kind_hit_every_rank_and_the_run_comes_to_its_end(command, tmp_path):
    told = []
    disturb(command, tmp_path / "run", tmp_path / "log", steps=STEPS, every=EVERY, kills=8, seed=1, tell=told.append)
    assert len(told) == 8 and {kill.way for kill in told} == set(WAYS) and {kill.rank for kill in told} == {0, 1}
    assert (tmp_path / "run/checkpoint.pt").exists()
    for kill in told:
        assert 0 <= kill.step - kill.resumed <= EVERY, kill
        assert kill.in_flight or kill.way != IN_CHECKPOINT, kill
        assert kill.code not in (0, None, "hung"), kill
        if (kill.way, kill.rank) == (TERM, 0):
            assert kill.resumed == kill.step
    assert [kill.resumed for kill in told] == sorted(kill.resumed for kill in told)


def test_nothing_lives_on_after_an_interruption(command, tmp_path):
    before, family = set(psutil.Process().children(recursive=True)), []

    def interrupt(kill):
        family.extend(set(psutil.Process().children(recursive=True)) - before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        disturb(command, tmp_path / "run", tmp_path / "log", steps=STEPS, every=EVERY, kills=8, seed=1, tell=interrupt)
    assert len(family) == 3  # torchrun and its ranks
    assert psutil.wait_procs(family, 5)[1] == []


def test_a_command_that_fails_by_itself_is_not_started_for_ever(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    with pytest.raises(PunishError, match="failed by itself, with exit code 7"):
        disturb(command, tmp_path, tmp_path / "log", steps=9, every=1, kills=1, seed=0, tell=print)


def test_the_command_says_how_it_ends(command, tmp_path, trained, capsys):
    report = tmp_path / "report.md"
    options = ["punish", "--kills", "4", "--report", str(report), "--", *command]
    assert main(options) == 0
    said = capsys.readouterr().out
    assert f"4 of 4 kills in a run of {STEPS} steps, a checkpoint every {EVERY}" in said and "bit for bit" in said
    assert len(said.splitlines()) == 1 + 4 + 3 and report.read_text().count("\n| ") == 2 + 4
    assert main(options) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_other_weights_have_exit_code_1(command, tmp_path, trained, capsys):
    other = tmp_path / "other"
    state = load_training_state(trained / "checkpoint.pt")
    next(iter(state["model"].values())).view(-1)[0] += 1
    other.mkdir()
    save_checkpoint(other / "checkpoint.pt", state)
    (other / "config.json").write_text(
        f'{{"config": {{"checkpoint_every": {EVERY}}}, "run": {{"total_steps": {STEPS}}}}}'
    )
    assert main(["punish", "--kills", "1", "--reference", str(other), "--", *command]) == 1
    assert f"DIFFER from {other} in 1 of" in capsys.readouterr().out


def test_one_bit_of_weights_or_moments_is_a_difference(trained, tmp_path):
    state = load_training_state(trained / "checkpoint.pt")
    assert differences(trained, trained)[0] == []
    weight = next(iter(state["model"]))
    number = next(iter(state["optimizer"]["state"]))
    for name, change in {
        f"model.{weight}": lambda s: s["model"][weight].view(-1)[:1].view(torch.int32).bitwise_xor_(1),
        f"optimizer.state.{number}.exp_avg": lambda s: s["optimizer"]["state"][number]["exp_avg"].neg_(),
        "step": lambda s: s.update(step=1),
    }.items():
        other = copy.deepcopy(state)
        change(other)
        save_checkpoint(tmp_path / "checkpoint.pt", other)
        assert differences(trained, tmp_path)[0] == [name]


@pytest.mark.parametrize(
    "command, message",
    [
        ("train.py --data a", "has no --out DIR"),
        ("train.py --out", "ends with --out"),
        ("train.py --out a --resume b.pt", "--resume b.pt: a run that is killed"),
    ],
)
def test_commands_that_cannot_be_punished(command, message, capsys):
    assert main(["punish", "--", *command.split()]) == 2
    assert message in capsys.readouterr().err


def test_without_psutil_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipt_fast.engine.punish")
    monkeypatch.delattr("ipt_fast.engine.punish")
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert main(["punish", "--", "train.py", "--out", "a"]) == 2
    assert 'psutil is not installed: pip install "ipt-fast[train]"' in capsys.readouterr().err


def test_the_command_resumes_by_itself():
    words, out = split_command(["train.py", "--out=runs/a", "--set", "lr=1"], Path("b"))
    assert (words, out) == (["train.py", "--out", "b", "--set", "lr=1", "--resume", "auto"], Path("runs/a"))
