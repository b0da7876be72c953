"""``ipt-fast convert`` as a new user tries it."""

import pytest
import torch

from ipt_fast import IPT, IPTConfig, load_checkpoint
from ipt_fast.cli import main


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return IPT(IPTConfig(n_feats=4, num_heads=12, num_layers=1))


@pytest.fixture
def released(tmp_path, network):
    path = tmp_path / "IPT_pretrain.pt"
    torch.save({"params": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    return path


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def test_there_and_back(released, network, tmp_path, capsys):
    safe, back = tmp_path / "a.safetensors", tmp_path / "back.pt"
    assert convert(released, "-o", safe, "--num-heads", "12") == 0
    assert convert(safe, "-o", back, "--layout", "released") == 0
    said = capsys.readouterr().out.splitlines()
    assert "sr2, sr3, sr4, derain, denoise30, denoise50" in said[0] and "read back and equal" in said[1]
    bare = torch.load(back, weights_only=True)
    assert list(bare) == list(network.state_dict())
    assert all(torch.equal(bare[key], value) for key, value in network.state_dict().items())


def test_one_task_in_half_precision(released, network, tmp_path):
    out = tmp_path / "derain.safetensors"
    assert convert(released, "-o", out, "--task", "derain", "--dtype", "fp16", "--num-heads", "12") == 0
    own = load_checkpoint(out)
    assert own.config.tasks == ("derain",)
    assert torch.equal(own.tail[0][1].weight, network.tail[3][1].weight.half().float())
    assert out.stat().st_size < 0.4 * released.stat().st_size


def test_a_training_checkpoint_gives_its_moving_average(network, tmp_path):
    from ipt_fast.checkpoint import FORMAT

    average = {k: v * 0.5 if v.is_floating_point() and "_mean" not in k else v for k, v in network.state_dict().items()}
    state = {"format": FORMAT, "config": {"model": network.config.to_dict(), "lr": 1}, "model": network.state_dict(),
             "ema": average, "optimizer": {"state": {0: torch.zeros(9)}}}  # fmt: skip
    torch.save(state, tmp_path / "checkpoint.pt")
    assert convert(tmp_path / "checkpoint.pt", "-o", tmp_path / "a.safetensors") == 0
    again = load_checkpoint(tmp_path / "a.safetensors").state_dict()
    assert torch.equal(again["head.0.0.weight"], network.head[0][0].weight * 0.5)


def test_never_overwrites_unless_told(released, tmp_path, capsys):
    out = tmp_path / "a.pt"
    out.write_text("precious")
    assert convert(released, "-o", out) == 2
    assert out.read_text() == "precious" and "is already there; --force overwrites" in capsys.readouterr().err
    assert convert(released, "-o", out, "--force", "--num-heads", "12") == 0
    assert convert(released, "-o", released, "--force") == 2
    assert "is the input itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"in": "none.pt"}, "none.pt: no such checkpoint"),
        ({"-o": "a.onnx"}, "ends in .safetensors, .pt or .pth"),
        ({"-o": "nowhere/a.pt"}, "is not there"),
        ({"--layout": "released"}, "is for .pt files"),
        ({"--task": "deblur"}, "has no task deblur"),
        ({"--num-heads": "5"}, "5 attention heads do not divide 36"),
        ({"--task": "upscale"}, "task 'upscale' is not known"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(change, message, released, tmp_path, assert_refused):
    options = {"in": str(released), "-o": str(tmp_path / "a.safetensors"), "--num-heads": "12", **change}
    source = options.pop("in")
    assert_refused("convert", [source, *(part for item in options.items() for part in item)], message)


def test_a_layout_that_cannot_hold_the_network(tmp_path, capsys):
    from ipt_fast.checkpoint import save_network

    three = save_network(IPT(IPTConfig(n_feats=4, num_heads=3, num_layers=1)), tmp_path / "three.pt")
    assert convert(three, "-o", tmp_path / "a.pt", "--layout", "released") == 2
    assert "this network has 3" in capsys.readouterr().err and not (tmp_path / "a.pt").exists()
