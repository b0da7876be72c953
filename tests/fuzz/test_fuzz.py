"""A slice of the random calls with fixed seeds; that a call is its seed's alone; that faults are found."""

import random

import pytest
import torch

from tests.fuzz import run
from tests.fuzz.__main__ import main
from tests.fuzz.verdict import AGREED, REFUSED, FaultError, close, refused


def test_two_hundred_calls_agree_or_are_refused_clearly():
    outcomes = list(run.run(seed=0, calls=200, seconds=300))
    assert len(outcomes) == 200 and {o.domain for o in outcomes} == set(run.DOMAINS)
    assert [o for o in outcomes if o.verdict not in (AGREED, REFUSED)] == []


def test_a_call_is_its_seeds_alone(monkeypatch):
    monkeypatch.setattr(run, "DOMAINS", {"numbers": (1, lambda rng: str([rng.random(), torch.rand(3).tolist()]))})
    first, _, again = (run.one(seed) for seed in (7, 8, 7))
    assert first.verdict == again.verdict != run.one(9).verdict


@pytest.mark.parametrize(
    "found, fault",
    [
        (torch.tensor([1.0, 2.0]), None),
        (torch.tensor([1.0, 2.001]), "off by 0.001"),
        (torch.tensor([1.0, torch.nan]), "1 of 2 numbers finite in one of the two alone"),
        (torch.ones(3), "shape"),
    ],
)
def test_other_numbers_are_a_fault(found, fault):
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    if fault is None:
        close("output", found, exact, exact.float(), torch.float32)
        return
    with pytest.raises(FaultError, match=fault):
        close("output", found, exact, exact.float(), torch.float32)


def test_a_nan_that_vanishes_is_a_fault():
    gone = torch.tensor([torch.nan])
    with pytest.raises(FaultError, match="finite in one"):
        close("output", torch.zeros(1), gone.double(), gone, torch.float32)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("x\ny"), ValueError("something else"), ZeroDivisionError()]
)
def test_an_error_that_helps_nobody_is_a_fault(error):
    with pytest.raises(FaultError):
        refused(error, ["x"])


def test_the_command_shows_faults_with_their_seeds(monkeypatch, tmp_path, capsys):
    def call(rng: random.Random) -> str:
        if rng.random() < 0.5:
            raise FaultError("wrong | numbers")
        return AGREED

    monkeypatch.setattr(run, "DOMAINS", {"coins": (1, call)})
    assert main(["--calls", "20", "--seed", "3", "--out", str(tmp_path / "results.md")]) == 1
    said, text = capsys.readouterr().out, (tmp_path / "results.md").read_text()
    seeds = [line.split()[1] for line in said.splitlines() if line.startswith("--one ")]
    assert 0 < len(seeds) < 20 and all(f"| {seed} | coins | wrong \\| numbers |" in text for seed in seeds)
    assert run.one(int(seeds[0])).verdict == run.FAULT
    assert "| all | 20 |" in text
