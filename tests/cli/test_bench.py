"""``ipt-fast bench``: one-line errors, and a small run from end to end."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from bench import ROOT, suite
from ipt_fast.cli import main


@pytest.fixture(autouse=True)
def _needs_bench_packages():
    pytest.importorskip("pytest_benchmark")
    pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--only", "nothing"], "no such benchmark; choose from "),
        (["--small"], "--small needs --out"),
        (["--budget", "0"], "--budget must be more than 0 seconds"),
    ],
)
def test_wrong_use_is_one_line(options, message, capsys):
    assert suite.main(options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_hands_its_options_and_the_exit_code_on(capfd):
    assert main(["bench", "--device", "cpu", "--only", "model", "--budget", "-1"]) == 2
    assert capfd.readouterr().err == "bench: --budget must be more than 0 seconds, got -1\n"


def test_without_a_clone_it_says_so(tmp_path):
    shutil.copytree(ROOT / "ipt_fast" / "cli", tmp_path / "ipt_fast" / "cli")
    shutil.copytree(ROOT / "ipt_fast" / "io", tmp_path / "ipt_fast" / "io")
    shutil.copy(ROOT / "ipt_fast" / "__init__.py", tmp_path / "ipt_fast")
    command = [sys.executable, "-m", "ipt_fast.cli", "bench"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "run it in a clone of the repository" in done.stderr and done.stderr.count("\n") == 1


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert suite.main(["--device", "cuda"]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_a_small_run_writes_every_file(tmp_path):
    command = [sys.executable, "-m", "ipt_fast.cli", "bench"]
    options = ["--small", "--device", "cpu", "--only", "model", "--out", "results"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=200,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ipt_fast bfloat16" in done.stdout
    files = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"results.json", "results.csv", "results.md", "model_forward.png"} <= files
    content = json.loads((tmp_path / "results" / "results.json").read_text())
    assert {r["contender"] for r in content["results"]} == {
        *("plain", "ipt_fast", "ipt_fast, hidden layers kept"),
        *("plain, weights cast", "ipt_fast, prepared"),
    }
    assert {entry["reason"] for entry in content["not_measured"]} == {
        "compiling the network for a CPU takes longer than measuring it"
    }
    assert content["ceilings"]["copy_bandwidth"] > 0
