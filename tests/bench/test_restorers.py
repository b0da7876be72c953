"""The networks that ours is compared with have the shapes of their papers, and the windows of SwinIR keep apart."""

import pytest
import torch

from bench.baselines.restorers import SwinLayer, from_windows, make, to_windows


@pytest.mark.parametrize("name, scale, parameters", [("dncnn", 1, 0.56e6), ("edsr", 2, 0.34e6), ("swinir", 2, 0.23e6)])
def test_sizes(name, scale, parameters):
    network = make(name, scale).eval()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.05)
    x = torch.rand(1, 3, 16, 24) * 255
    assert network(x).shape == (1, 3, 16 * scale, 24 * scale)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_scales(scale):
    assert make("edsr", scale)(torch.zeros(1, 3, 8, 8)).shape[-1] == 8 * scale
    assert make("swinir", scale)(torch.zeros(1, 3, 8, 8)).shape[-1] == 8 * scale


def test_windows_are_put_together_again():
    x = torch.rand(2, 16, 24, 5)
    assert torch.equal(from_windows(to_windows(x, 8), 8, 2, 16, 24), x)


def test_moved_windows_do_not_reach_around_the_image():
    layer = SwinLayer(dim=8, heads=2, w=8, shift=4).double()
    x = torch.rand(1, 16, 16, 8, dtype=torch.float64)
    other = x.clone()
    other[0, 0, 0, 0] += 1
    changed = (layer(x) != layer(other)).any(-1)[0]  # [H, W]
    assert changed[:4, :4].all() and not changed[4:].any() and not changed[:, 4:].any()


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match="choose edsr or swinir"):
        make("dncnn", 2)
    with pytest.raises(ValueError, match="no network 'hat'"):
        make("hat", 2)


@pytest.mark.parametrize("shift", [0, 4])
def test_windows_attend_alike_with_and_without_gradients(shift):
    layer = SwinLayer(dim=8, heads=2, w=8, shift=shift).double()
    x = torch.rand(2, 16, 16, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
    assert torch.allclose(layer(x), expected, rtol=1e-12)
