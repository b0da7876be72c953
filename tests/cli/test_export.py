"""``ipt-fast export`` as a new user tries it."""

import pytest
import torch

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import save_network
from ipt_fast.cli import main
from ipt_fast.inference.export import ExportError, onnx_missing, run_exported


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return IPT(IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1)).eval()


@pytest.fixture
def checkpoint(tmp_path, network):
    return str(save_network(network, tmp_path / "a.pt"))


def export(*arguments):
    return main(["export", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_file_that_runs(kind, checkpoint, network, tmp_path, capsys):
    if kind == "onnx" and onnx_missing():
        pytest.skip(onnx_missing())
    out = tmp_path / f"sr2.{kind}"
    assert export(checkpoint, "--task", "sr2", "-o", out) == 0
    said = capsys.readouterr()
    assert "[B, 3, 12, 12] -> [B, 3, 24, 24]" in said.out and said.out.count("\n") == 1 and not said.err
    x = torch.rand(2, 3, 12, 12) * 255
    with torch.no_grad():
        assert (run_exported(out, x) - network(x, "sr2")).abs().max() < 1e-2
    assert export(checkpoint, "--task", "sr2", "-o", out) == 2
    assert "already there; --force overwrites" in capsys.readouterr().err


def test_range_precision_and_ops_are_honoured_or_refused(checkpoint, network, tmp_path, capsys):
    out = tmp_path / "sr2.pt2"
    assert export(checkpoint, "--task", "sr2", "-o", out, "--range", 1, "--precision", "fp16") == 0
    assert "fp16, 0..1" in capsys.readouterr().out
    x = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        wanted = network(x * 255, "sr2")
    assert (run_exported(out, x.half()).float() * 255 - wanted).abs().max() < 1
    assert export(checkpoint, "--task", "sr2", "-o", tmp_path / "a.onnx", "--keep-ops") == 2
    assert "--keep-ops is for .pt2" in capsys.readouterr().err


def test_unseen_noise_is_the_nearest_level(checkpoint, tmp_path, capsys):
    (tmp_path / "a.pt2").write_text("an older file")
    assert export(checkpoint, "--task", "denoise70", "-o", tmp_path / "a.pt2", "--force") == 0
    assert "denoise70 (the nearest task, denoise50)" in capsys.readouterr().out


def test_a_wrong_program_is_a_failure(checkpoint, tmp_path, monkeypatch, capsys):
    def wrong(*_, **__):
        raise ExportError("the exported program is 9 levels off the network")

    monkeypatch.setattr("ipt_fast.inference.export.export_network", wrong)
    assert export(checkpoint, "--task", "sr2", "-o", tmp_path / "a.pt2") == 1
    assert capsys.readouterr().err == "ipt-fast export: the exported program is 9 levels off the network\n"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"in": "none.pt"}, "none.pt: no such checkpoint"),
        ({"-o": "a.pt"}, "ends in .pt2 or .onnx"),
        ({"-o": "nowhere/a.pt2"}, "is not there"),
        ({"--task": "deblur"}, "has no task deblur; it has sr2"),
        ({"--task": "upscale"}, "task 'upscale' is not known"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(change, message, checkpoint, tmp_path, assert_refused):
    options = {"in": checkpoint, "-o": str(tmp_path / "a.pt2"), "--task": "sr2", **change}
    source = options.pop("in")
    assert_refused("export", [source, *(part for item in options.items() for part in item)], message)


def test_without_onnx(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ipt_fast.inference.export.module_missing", lambda name: "absent")
    assert export(checkpoint, "--task", "sr2", "-o", tmp_path / "a.onnx") == 2
    assert "pip install 'ipt-fast[export]'" in capsys.readouterr().err
