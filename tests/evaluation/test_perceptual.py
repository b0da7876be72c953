"""LPIPS and DISTS: what the authors' packages give, on backbones of the released names and shapes."""

import pytest
import torch

from ipt_fast.checkpoint import CheckpointError
from ipt_fast.evaluation.perceptual import alexnet, load_dists, load_lpips, vgg16
from tests.evaluation.backbones import write_backbone

pytest.importorskip("torchmetrics", reason="needs the extra metrics")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    return {name: write_backbone(folder / f"{name}.pth", name) for name in ("alexnet", "vgg16")}


def waves():
    """Two images [1, 3, 64, 70], 0..255."""
    n = torch.arange(3 * 64 * 70, dtype=torch.float64).view(1, 3, 64, 70)
    return ((127.5 + 127.5 * torch.sin(n / a + b)).round().float() for a, b in ((300, 0), (310, 0.1)))


@pytest.mark.parametrize(
    "load, backbone, wanted",
    [
        (load_lpips, "alexnet", 0.39415279),  # lpips 0.1.4, version 0.1, torchvision 0.29
        (load_lpips, "vgg16", 0.18864276),
        (load_dists, "vgg16", 0.05818939),  # DISTS_pytorch 0.1
    ],
)
def test_as_the_authors_packages(files, load, backbone, wanted):
    x, y = waves()
    distance = load(files[backbone])
    assert distance(x, y).item() == pytest.approx(wanted, rel=2e-5)
    assert distance(x, x).item() == pytest.approx(0, abs=1e-12)
    both = distance(torch.cat([x, x]), torch.cat([y, x]))
    assert both.tolist() == pytest.approx([wanted, 0], rel=2e-5, abs=1e-7)
    assert distance(torch.nn.functional.pad(x, (2,) * 4), torch.nn.functional.pad(y, (2,) * 4), 2) == distance(x, y)


def test_layers_have_the_released_names():
    names = [{int(key.split(".")[0]) for key in net()[0].state_dict()} for net in (alexnet, vgg16)]
    assert names == [{0, 3, 6, 8, 10}, {0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28}]


def test_the_output_is_rounded_as_a_file_would_be(files):
    x, y = waves()
    distance = load_lpips(files["alexnet"])
    assert distance(x + 0.3, y) == distance(x, y)


def test_a_file_of_something_else_is_refused(files, tmp_path):
    with pytest.raises(CheckpointError, match=r"no backbone of dists; needs the weights of vgg16-397923af.pth"):
        load_dists(files["alexnet"])
    torch.save({"features.1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"alexnet-owt-7be5be79.pth or vgg16"):
        load_lpips(tmp_path / "other.pth")
    weights = torch.load(files["alexnet"])
    del weights["features.6.bias"]
    torch.save(weights, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"6\.bias is missing"):
        load_lpips(tmp_path / "cut.pth")


def test_without_torchmetrics_the_extra_is_named(files, monkeypatch):
    monkeypatch.setattr("ipt_fast.evaluation.perceptual.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'ipt-fast\[metrics\]'"):
        load_lpips(files["alexnet"])


@pytest.mark.parametrize("load, backbone, side", [(load_lpips, "alexnet", 31), (load_dists, "vgg16", 16)])
def test_the_least_side_that_can_be_measured(files, load, backbone, side):
    distance = load(files[backbone])
    x, y = (image[..., :side, :side] for image in waves())
    assert torch.isfinite(distance(x, y)).all()
    with pytest.raises(ValueError, match=f"at least {side} pixels a side"):
        distance(x[..., 1:], y[..., 1:])
