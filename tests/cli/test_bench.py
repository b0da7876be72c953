"""``ipt-fast bench``: one-line errors, and a small run from end to end."""

import json
import subprocess
import sys

import pytest

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
    assert main(["bench", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_a_small_run_writes_every_file(tmp_path):
    command = [sys.executable, "-c", "from ipt_fast.cli import main; import sys; sys.exit(main())"]
    options = ["bench", "--small", "--device", "cpu", "--only", "model", "--out", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ipt_fast bfloat16" in done.stdout
    files = {path.name for path in tmp_path.iterdir()}
    assert {"results.json", "results.csv", "results.md", "model_forward.png"} <= files
    content = json.loads((tmp_path / "results.json").read_text())
    assert {r["contender"] for r in content["results"]} == {
        *("plain", "ipt_fast", "ipt_fast, hidden layers kept"),
        *("plain, weights cast", "ipt_fast, prepared"),
    }
    assert content["not_measured"] == []
    assert content["ceilings"]["copy_bandwidth"] > 0
