"""The table of backends: every op, one taken, a reason for each that is not."""

import subprocess
import sys

import pytest
import torch

from ipt_fast import ops
from ipt_fast.cli import info, main


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.delenv("IPT_FAST_IMPL", raising=False)
    return info.backend_rows(torch.device("cpu"))


def test_every_op_takes_exactly_one_backend(rows):
    assert [op for op, _, verdict in rows if verdict == "taken"] == list(info.OPS)


def test_what_is_not_taken_says_why(rows):
    assert {op for op, _, _ in rows} == set(info.OPS)
    for _, name, verdict in rows:
        assert verdict == "taken" or verdict == f'works; ask with impl="{name}"' or verdict.startswith("needs ")


def test_the_variable_decides(monkeypatch):
    monkeypatch.setenv("IPT_FAST_IMPL", "eager")
    taken = {name for _, name, verdict in info.backend_rows(torch.device("cpu")) if verdict == "taken"}
    assert taken == {"eager"}


def test_a_variable_that_cannot_be_served_is_shown_and_does_not_stop_the_table(monkeypatch):
    monkeypatch.setenv("IPT_FAST_IMPL", "patch_attention=no_such")
    rows = info.backend_rows(torch.device("cpu"))
    assert ("patch_attention", "none") in {row[:2] for row in rows}
    assert '"no_such" is not a backend' in next(row[2] for row in rows if row[1] == "none")
    assert len({row[0] for row in rows if row[2] == "taken"}) == len(info.OPS) - 1


def test_versions_name_what_is_missing():
    rows = dict(info.version_rows(("torch", "no-such-package")))
    assert rows["torch"].startswith(torch.__version__.split("+")[0])
    assert rows["no-such-package"] == "not installed"


def test_every_function_of_ops_is_listed():
    functions = {name for name in ops.__all__ if name.islower()}
    assert set(info.OPS) <= functions and {"degrade", "patch_attention", "patch_contrastive_loss"} <= set(info.OPS)


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "ipt_fast.cli", "info"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("torch", *info.OPS))


@pytest.mark.parametrize(
    "gpu, attention, contrastive",
    [("v100", "cuda", "gemm"), ("t4", "cuda", "gemm"), ("a100", "triton", "triton"), ("h100", "triton", "triton")],
)
def test_a_plan_for_a_gpu_that_is_not_here(gpu, attention, contrastive, monkeypatch):
    monkeypatch.delenv("IPT_FAST_IMPL", raising=False)
    taken, refused = info.plan_rows(gpu)
    halves = {op: cells[0].split()[0] for op, *cells in taken}
    assert set(halves) == set(info.OPS)
    assert halves["patch_attention"] == attention and halves["ffn"] == "triton"
    assert halves["patch_contrastive_loss"] == contrastive and halves["degrade"] == "triton"
    assert (("patch_attention", "triton") in {row[:2] for row in refused}) == (attention == "cuda")


def test_the_order_of_sdpa_is_pytorchs_own(capsys):
    assert info.sdpa_order((7, 0)) == ["efficient", "math"]
    assert info.sdpa_order((8, 0)) == info.sdpa_order((12, 0)) == ["flash", "efficient", "math"]
    assert info.sdpa_order((9, 0))[0].startswith("cudnn") and info.sdpa_order((9, 0))[1:] == info.sdpa_order((8, 0))
    assert main(["info", "--for", "h100"]) == 0
    assert 'h100: impl="sdpa" has PyTorch try cudnn (from 9.15.1 on), flash, efficient, math' in capsys.readouterr().out


def test_the_kernel_of_sdpa_is_what_pytorch_answers():
    assert info.sdpa_kernel_of(torch.device("cpu")) == "flash"


@pytest.mark.gpu
def test_the_kernel_of_sdpa_on_a_gpu_is_the_first_of_its_order_that_serves():
    found = info.sdpa_kernel_of(torch.device("cuda"))
    first, second = (info.sdpa_order(torch.cuda.get_device_capability()) * 2)[:2]
    assert found in (first.split()[0], second)  # the second where cuDNN is too old


def test_a_plan_is_what_the_registry_says_for_each_dtype(monkeypatch):
    monkeypatch.delenv("IPT_FAST_IMPL", raising=False)
    (cells,) = (cells for op, *cells in info.plan_rows("v100")[0] if op == "patch_attention")
    assert cells[0].startswith("cuda (sdpa, ") and cells[1].startswith("sdpa (") and "cuda" not in cells[1] + cells[2]


def test_a_plan_leaves_this_machine_as_it_is(rows):
    info.plan_rows("h100")
    assert info.backend_rows(torch.device("cpu")) == rows


def test_the_variable_counts_in_a_plan_and_does_not_stop_it(monkeypatch):
    monkeypatch.setenv("IPT_FAST_IMPL", "patch_attention=cuda")
    (cells,) = (cells for op, *cells in info.plan_rows("h100")[0] if op == "patch_attention")
    assert cells[0].startswith("cuda") and cells[1:] == ["none", "none"]


def test_the_command_prints_plans(capsys):
    assert main(["info", "--for", "v100", "a100"]) == 0
    text = capsys.readouterr().out
    assert "v100, capability 7.0" in text and "a100, capability 8.0" in text and "versions" not in text
