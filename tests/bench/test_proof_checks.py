"""Each check of the proof passes on what is right, and says so where it is not: a fault is put into what it checks."""

import json
import os

import pytest
import torch
from torch import Tensor, nn

from bench.proof import calls, network, ops, ranks, stages, steps, throughput
from bench.proof.check import Row, Setting, judge, main, read_rows, run_check
from bench.proof.run import StageError
from ipt_fast.engine.graphs import StepGraphs
from ipt_fast.engine.precision import LossScale
from ipt_fast.engine.step import TrainStep

CPU = torch.device("cpu")
FLOAT, HALF = Setting(CPU, True, (torch.float32,)), Setting(CPU, True, (torch.bfloat16,))


@pytest.fixture
def proof(tmp_path):
    made = stages.Proof(CPU, tmp_path / "results", small=True)
    yield made
    made.close()


def verdicts(rows):
    return {row.case: row.passed for row in rows}


def wrong(function):
    """Return ``function`` with a result that is one percent off."""

    def off(result):
        return result * 1.01 if isinstance(result, Tensor) else tuple(x * 1.01 for x in result)

    return lambda *args, **options: off(function(*args, **options))


def only_ours(function):
    """Return ``function``, wrong where it is not asked for its reference."""
    return lambda *args, impl=None, **options: (function if impl == "eager" else wrong(function))(
        *args, impl=impl, **options
    )


def test_network(monkeypatch):
    assert all(passed is not False for passed in verdicts(network.check(FLOAT)).values())
    real = network.pretrain_loss
    monkeypatch.setattr(network, "pretrain_loss", lambda *args: real(*args)._replace(total=real(*args).total * 1.05))
    failed = [case for case, passed in verdicts(network.check(FLOAT)).items() if passed is False]
    assert [case.partition(", float32, ")[2] for case in failed] == ["loss", "all 46 gradients"]


def test_network_without_a_gradient():
    exact = {"output": torch.ones(2), "a": torch.ones(2), "b": torch.ones(2)}
    (row,) = network.compare("x", {"output": torch.ones(2), "a": torch.ones(2)}, exact, exact, 1e-3)
    assert row.passed is False and row.found.endswith(": b")


@pytest.mark.parametrize("broken", [False, True])
def test_ops(broken, monkeypatch):
    if broken:
        names = ("degrade", "ffn", "layernorm_linear", "patch_attention", "patch_contrastive_loss", "pixelshuffle_tail",
                 "row_contrastive_loss")  # fmt: skip
        for name in names:
            monkeypatch.setattr(ops, name, only_ours(getattr(ops, name)))
        monkeypatch.setattr(ops, "degrade_status", lambda device: {"own": None})
        real = ops.degrade
        monkeypatch.setattr(ops, "degrade", lambda *a, impl, **k: real(*a, impl=None if impl == "own" else impl, **k))
    rows = list(ops.check(FLOAT))
    assert len(rows) == 30
    assert {row.passed for row in rows} == {not broken}


def test_steps(monkeypatch):
    assert set(verdicts(steps.check(FLOAT)).values()) == {True}
    real = steps.prepare
    monkeypatch.setattr(steps, "prepare", lambda step, number, bad=None: real(step, number))  # the inf is lost
    monkeypatch.setattr(LossScale, "update", lambda self, bad: None)
    monkeypatch.setattr(TrainStep, "load_state_dict", lambda self, state: self.model.load_state_dict(state["model"]))
    found = verdicts(steps.check(FLOAT))
    assert len(found) == 4 and set(found.values()) == {False}


def test_waits(monkeypatch):
    assert set(verdicts(steps.check_waits(FLOAT)).values()) == {True}
    real = TrainStep.__call__

    def reads(self, *args):
        outcome = real(self, *args)
        outcome.numbers[0].item()
        return outcome

    monkeypatch.setattr(TrainStep, "__call__", reads)
    (row,) = steps.check_waits(FLOAT)
    assert row.passed is False and row.found == "the host waits: item"


def test_graphs(monkeypatch):
    assert set(verdicts(steps.check_graphs(FLOAT)).values()) == {True}
    real = StepGraphs.__call__
    monkeypatch.setattr(StepGraphs, "__call__", lambda self, x, y, task, lr, stop: real(self, x, y, task, 2 * lr, stop))
    (row,) = steps.check_graphs(FLOAT)
    assert row.passed is False and "tensors differ" in row.found


def test_ranks(monkeypatch):
    assert set(verdicts(ranks.check(HALF)).values()) == {True}
    real = ranks.patch_contrastive_loss
    scaled = lambda x, scope="local": real(x, scope=scope) * (1.01 if scope == "global" else 1)  # noqa: E731
    monkeypatch.setattr(ranks, "patch_contrastive_loss", scaled)
    monkeypatch.setattr(ranks.dist, "all_gather", lambda gathered, x: None)
    monkeypatch.setattr(ranks, "DistributedDataParallel", lambda network, **options: nn.Sequential(network, nn.Tanh()))
    failed = [case for case, passed in verdicts(ranks.check(HALF)).items() if not passed]
    assert len(failed) == 3 and failed[0].startswith("all_reduce, all_gather")


def test_throughput(monkeypatch):
    row = throughput.measure(HALF, throughput.OFFICIAL, 2, None)
    assert row.passed and row.values["patches_per_s"] == pytest.approx(2e3 / row.values["step_ms"])
    assert throughput.measure(HALF, throughput.COMPILED, 2, None).passed is None
    real = throughput.pretrain_loss
    monkeypatch.setattr(
        throughput, "pretrain_loss", lambda *args: real(*args)._replace(total=real(*args).total * torch.nan)
    )
    assert throughput.measure(HALF, throughput.OFFICIAL, 2, None).passed is False


def test_an_error_that_is_no_number_is_a_failure():
    assert judge("x", [("a", 0.1, 1.0), ("b", float("nan"), 1.0)]).passed is False
    assert judge("x", [("a", 0.1, 1.0), ("b", 0.9, 1.0)]) == Row(
        "x", True, "0.90 of the error that is allowed, b", {"share": 0.9}
    )


def test_rows_are_in_the_file_before_the_check_ends(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.jsonl"

    def breaks(setting):
        yield Row("first", True, "good")
        assert len(read_rows(path)) == 1
        raise KeyError("gone")

    monkeypatch.setattr(ops, "check", breaks)
    assert main(["ops", "--device", "cpu", "--small", "--rows", str(path)]) == 1
    assert [row.passed for row in read_rows(path)] == [True, False]
    assert read_rows(path)[1].found == "KeyError: 'gone'"
    monkeypatch.setattr(ops, "check", lambda setting: iter([Row("only", None, "absent")]))
    assert not any(row.passed is False for row in run_check("ops", FLOAT, tmp_path / "other"))


@pytest.mark.parametrize(
    "code, rows, line",
    [
        (0, [("a", True, "x"), ("b", None, "absent")], "1 results, all good; 1 not run: b: absent"),
        (1, [("a", True, "x"), ("b", False, "off by 2")], "1 of 2 failed: b: off by 2"),
        (None, [("a", False, "off by 2")], "1 of 1 failed, then out of time"),
        (None, [("a", True, "x")], "out of time after 1 results, all of them good"),
        (-11, [("a", True, "x")], "left with -11"),
        (0, [], "no result"),
    ],
)
def test_stage_of_a_check(proof, monkeypatch, code, rows, line):
    def execute(command, log, seconds, env=None):
        log.write_text("last words")
        path = next(part for part in command if part.startswith("--rows=")).removeprefix("--rows=")
        with open(path, "w") as file:
            file.writelines(json.dumps({"case": c, "passed": p, "found": f}) + "\n" for c, p, f in rows)
        return code

    monkeypatch.setattr(stages, "execute", execute)
    if code == 0 and rows:
        assert stages.check_of("ops")(proof, 9) == line
    else:
        with pytest.raises(StageError, match=line):
            stages.check_of("ops")(proof, 9)
    assert len(proof.found["checks"]["ops"]) == len(rows)


@pytest.mark.parametrize("broken", [False, True])
def test_stage_warm(proof, monkeypatch, broken):
    monkeypatch.setattr(calls, "degrade", wrong(lambda *args, **options: 1 / 0) if broken else calls.degrade)
    done = [calls.call_one("cpu", True, "degrade sr2")]

    def execute(command, log, seconds, env=None):
        (proof.folder / "logs" / "warm.json").write_text(json.dumps(done))
        return int(broken)

    monkeypatch.setattr(stages, "execute", execute)
    if broken:
        with pytest.raises(StageError, match="1 of 1 calls failed: degrade sr2: ZeroDivisionError"):
            stages.warm(proof, 9)
    else:
        assert stages.warm(proof, 9).startswith("1 calls")


def test_every_kernel_is_called_once(monkeypatch):
    listed = calls.calls(FLOAT, once=True)
    for word in ("contrastive", "attention", "norms", "tail", "degrade derain"):
        assert any(name.startswith(word) for name in listed)
    for call in listed.values():
        call()


@pytest.mark.parametrize(
    "code, found", [(0, "memcheck: ERROR SUMMARY: 0 errors; racecheck: "), (9, "memcheck: left with 9")]
)
def test_stage_sanitizer(proof, monkeypatch, tmp_path, code, found):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '========= ERROR SUMMARY: 0 errors'\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if code:
        with pytest.raises(StageError, match=found):
            stages.sanitizer(proof, 9)
    else:
        assert stages.sanitizer(proof, 9).startswith(found)


def test_stage_sanitizer_that_is_absent(proof, monkeypatch):
    monkeypatch.setattr(stages.shutil, "which", lambda *args, **options: None)
    assert stages.sanitizer(proof, 9).startswith("not run: compute-sanitizer is not installed")


@pytest.mark.parametrize(
    "code, line", [(0, "1 results, 1 not measured"), (1, "a benchmark failed"), (None, "out of time")]
)
def test_stage_of_benchmarks(proof, monkeypatch, code, line):
    from bench.proof.stages import Ceilings, Run, read_run, save_run
    from tests.bench.test_proof import result

    save_run(Run({"device": "cpu"}, Ceilings("X", 1, 1.0, {}), [result("eager", 1)], []), proof.folder)

    def execute(command, log, seconds, env=None):
        assert "--add" in command and "--only=model" in command
        run = read_run(proof.folder)
        run.results.append(result("triton", 1))
        run.not_measured.append({"case": "x", "reason": "absent"})
        save_run(run, proof.folder)
        log.write_text("FAILED x\n")
        return code

    monkeypatch.setattr(stages, "execute", execute)
    if code == 0:
        assert stages.bench_of("model")(proof, 9) == line
    else:
        with pytest.raises(StageError, match=f"1 results, 1 not measured; .*{line}"):
            stages.bench_of("model")(proof, 9)
