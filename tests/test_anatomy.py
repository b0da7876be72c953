"""docs/anatomy.md adds an op: its blocks, put where they say into a copy of the tree, work as the page promises."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs ``python -m ...`` in a copy of the tree with the files of the page."""
    tree = tmp_path_factory.mktemp("anatomy")
    for folder in ("ipt_fast", "kernels", "bench", "tests/ops"):
        ignored = shutil.ignore_patterns("__pycache__", "results", "test_*")
        shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, tree / name)
    blocks = BLOCK.findall((ROOT / "docs/anatomy.md").read_text())
    assert [name for name, _ in blocks] == [
        "ipt_fast/ops/rms_norm.py", "tests/ops/test_rms_norm.py", "bench/bench_rms_norm.py",
    ]  # fmt: skip
    for name, text in blocks:
        (tree / name).write_text(text)
    public = tree / "ipt_fast/ops/__init__.py"
    public.write_text(f"{public.read_text()}\nfrom ipt_fast.ops.rms_norm import rms_norm\n__all__ += ['rms_norm']\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "IPT_FAST_IMPL")}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run


def test_the_op_keeps_its_contract(run):
    assert re.search(r"1[0-9] passed", run("pytest", "-q", "tests/ops/test_rms_norm.py"))


def test_info_lists_it(run):
    rows = [line for line in run("ipt_fast.cli", "info").splitlines() if "rms_norm" in line]
    assert len(rows) == 2 and "taken" in rows[0] and 'impl="eager"' in rows[1]


def test_the_benchmark_runs(run):
    pytest.importorskip("pytest_benchmark")
    options = ["addopts=", "python_files=bench_*.py", "python_functions=bench_*"]
    settings = [part for option in options for part in ("-o", option)]
    assert "2 passed" in run("pytest", "-q", "bench/bench_rms_norm.py", *settings, "--device=cpu", "--small")
