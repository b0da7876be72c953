"""The lists of faults fit the tree as it is, and their runner reports what it finds."""

import importlib

import pytest

from tests.mutants import Mutant, run

ALL = [m for name in run.lists() for m in importlib.import_module(f"tests.mutants.{name}").MUTANTS]


@pytest.mark.parametrize("mutant", ALL, ids=lambda m: f"{m.file}: {' '.join(m.old.split())[:40]}")
def test_a_mutant_applies_in_one_place(mutant):
    assert (run.ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    words = [word.partition("::")[0] for word in mutant.tests.split()]
    assert all((run.ROOT / word).exists() for word in words if word.startswith("tests/"))


@pytest.fixture
def report(monkeypatch, tmp_path):
    """Return a function that runs mutants whose tests fail or pass as told; the exit code and the report."""

    def report(fails, mutants):
        monkeypatch.setattr(run, "fails", fails)
        monkeypatch.setattr(importlib.import_module("tests.mutants.evaluation"), "MUTANTS", mutants)
        out = tmp_path / "new" / "mutants.md"
        return run.main(["evaluation", "--out", str(out)]), out.read_text() if out.exists() else ""

    return report


GOOD = Mutant("ipt_fast/tasks.py", "scale: int = 1", "scale: int = 2", "tests/test_tasks.py")


def test_what_is_noticed_is_caught(report):
    code, text = report(lambda tests, mutant=None: mutant is not None, [GOOD])
    assert code == 0 and "1 of 1 caught" in text
    assert "| ipt_fast/tasks.py | `scale: int = 1` | `scale: int = 2` | tests/test_tasks.py | caught | 0 |" in text


def test_what_nobody_notices_survives(report):
    code, text = report(lambda tests, mutant=None: False, [GOOD])
    assert code == 1 and "0 of 1 caught" in text and "| survived |" in text


@pytest.mark.parametrize(
    "change, reason",
    [({"old": "no such text"}, "found 0 times"), ({"old": "Task"}, "found "), ({"file": "no/such.py"}, "no such file")],
)
def test_what_does_not_apply_is_not_tried(change, reason, report):
    code, text = report(lambda tests, mutant=None: mutant is not None, [GOOD._replace(**change)])
    assert code == 1 and f"does not apply: {reason}" in text


def test_tests_that_fail_anyway_prove_nothing(report, capsys):
    assert report(lambda tests, mutant=None: True, [GOOD]) == (2, "")
    assert "fail without any fault, or do not exist: tests/test_tasks.py" in capsys.readouterr().err
