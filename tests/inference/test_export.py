"""Exported programs compute what the network does, for any batch, and know no package of ours."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ipt_fast import IPT, IPTConfig
from ipt_fast.inference.export import METADATA, ExportError, export_network, onnx_missing, run_exported

needs_onnx = pytest.mark.skipif(onnx_missing() is not None, reason=str(onnx_missing()))
KINDS = [".pt2", pytest.param(".onnx", marks=needs_onnx)]
CONFIG = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IPT(CONFIG).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["sr4", "derain"])
def test_the_program_equals_eager(model, kind, task, tmp_path):
    path = tmp_path / f"a{kind}"
    assert export_network(model, task, path) < 1e-2
    for count in (1, 2, 7):
        x = torch.rand(count, 3, 12, 12) * 255
        with torch.no_grad():
            assert (run_exported(path, x) - model(x, task)).abs().max() < 1e-2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top, dtype, most", [(1, torch.float32, 1e-2), (255, torch.float16, 1.0)])
def test_range_and_dtype_are_those_asked_for(model, kind, top, dtype, most, tmp_path):
    path = tmp_path / f"a{kind}"
    assert export_network(model, "denoise30", path, value_range=top, dtype=dtype) < most
    x = (torch.rand(5, 3, 12, 12) * top).to(dtype)
    with torch.no_grad():
        wanted = model(x.float() * (255 / top), "denoise30")
    out = run_exported(path, x)
    assert out.dtype == dtype and (out.float() * (255 / top) - wanted).abs().max() < most
    other = torch.float16 if dtype == torch.float32 else torch.float32
    with pytest.raises(ValueError, match=f"x must be {str(dtype)[6:]}, as .* is"):
        run_exported(path, x.to(other))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_says_what_it_takes(model, kind, tmp_path):
    path = tmp_path / f"a{kind}"
    export_network(model, "sr3", path, value_range=1)
    if kind == ".onnx":
        import onnx

        found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    else:
        extra = {"ipt_fast.json": ""}
        torch.export.load(path, extra_files=extra)
        found = json.loads(extra["ipt_fast.json"])
    assert {key: found[key] for key in ("task", "scale", "window", "range", "dtype")} == {
        "task": "sr3", "scale": "3", "window": "12", "range": "1", "dtype": "float32",
    }  # fmt: skip
    assert set(METADATA) <= set(found) and IPTConfig.from_dict(json.loads(found["config"])) == CONFIG


def test_ops_are_kept_as_nodes_where_asked(model, tmp_path):
    nodes = {}
    for keep in (False, True):
        export_network(model, "sr2", tmp_path / "a.pt2", keep_ops=keep)
        program = torch.export.load(tmp_path / "a.pt2")
        nodes[keep] = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert "ipt_fast" in nodes[True] and "ipt_fast" not in nodes[False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_with_parts_switched_off(kind, tmp_path):
    switches = {"task_embed": False, "position_embed": False, "memory_norm": True, "mlp": False}
    config = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, tasks=("sr2",), **switches)
    assert export_network(IPT(config).eval(), "sr2", tmp_path / f"a{kind}") < 1e-2


def test_a_program_runs_without_this_package(model, tmp_path):
    path = tmp_path / "a.pt2"
    export_network(model, "sr2", path)
    program = "import sys\nsys.modules['ipt_fast'] = None\nimport torch\n"
    program += (
        f"y = torch.export.load({str(path)!r}).module()(torch.zeros(5, 3, 12, 12))\nassert y.shape == (5, 3, 24, 24)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-1000:]


@needs_onnx
def test_the_onnx_file_is_valid_and_holds_standard_operators(model, tmp_path):
    import onnx

    path = tmp_path / "a.onnx"
    export_network(model, "sr2", path)
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path)
    assert {node.domain for node in graph.graph.node} == {""}
    assert [value.name for value in graph.graph.input] == ["x"]
    assert [value.name for value in graph.graph.output] == ["y"]


def test_one_task_alone_is_in_the_file(model, tmp_path):
    sizes = []
    for config in (CONFIG, IPTConfig(**{**CONFIG.to_dict(), "tasks": ("denoise30",)})):
        export_network(IPT(config), "denoise30", tmp_path / "a.pt2")
        sizes.append((tmp_path / "a.pt2").stat().st_size)
    assert sizes[0] < 1.01 * sizes[1] and len(model.tail) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_network_keeps_its_dtype_and_mode(dtype, tmp_path):
    network = IPT(IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, tasks=("sr2",))).to(dtype).train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    export_network(network, "sr2", tmp_path / "a.pt2")
    assert network.training and all(module.training for module in network.modules())
    assert all(p.requires_grad for p in network.body.parameters())
    for key, value in network.state_dict().items():
        assert value.dtype == state[key].dtype and torch.equal(value, state[key])


def test_the_environment_and_the_network_are_as_before(model, tmp_path, monkeypatch):
    monkeypatch.setenv("IPT_FAST_IMPL", "sdpa")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_network(model, "sr2", tmp_path / "a.pt2")
    assert os.environ["IPT_FAST_IMPL"] == "sdpa"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_program_that_is_wrong_is_not_kept(model, tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"
    path.write_text("an older file")
    monkeypatch.setattr("ipt_fast.inference.export.run_exported", lambda path, x: torch.zeros(len(x), 3, 24, 24))
    with pytest.raises(ExportError, match="levels off the network"):
        export_network(model, "sr2", path)
    monkeypatch.setattr("ipt_fast.inference.export.run_exported", lambda path, x: torch.zeros(len(x), 3, 12, 12))
    with pytest.raises(ExportError, match=r"gives \[1, 3, 12, 12\], the network \[1, 3, 24, 24\]"):
        export_network(model, "sr2", path)
    assert path.read_text() == "an older file" and len(list(tmp_path.iterdir())) == 1


def test_errors(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"ends in \.pt2 or \.onnx"):
        export_network(model, "sr2", tmp_path / "a.bin")
    with pytest.raises(ValueError, match="not in this network"):
        export_network(model, "deblur", tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"dtype must be torch\.float32 or torch\.float16, got torch\.bfloat16"):
        export_network(model, "sr2", tmp_path / "a.pt2", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"keep_ops is for \.pt2"):
        export_network(model, "sr2", tmp_path / "a.onnx", keep_ops=True)
    monkeypatch.setattr("ipt_fast.inference.export.module_missing", lambda name: "absent")
    with pytest.raises(ExportError, match=r"needs the package onnx: pip install 'ipt-fast\[export\]'"):
        export_network(model, "sr2", tmp_path / "a.onnx")
