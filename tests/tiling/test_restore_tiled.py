"""restore_tiled with networks of others: no seams, any size, bounded memory, disk to disk, clear refusals."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from bench.baselines.people_networks import EDSR, SwinIR
from ipt_fast.tiling import restore_tiled


def convolutions(scale=1, channels=3, radius=3):
    """Return a convolutional network that sees ``radius`` pixels far."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()] * (radius - 2)
    layers += [nn.Conv2d(8, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("size", [(97, 131), (48, 48), (49, 200)])
@pytest.mark.parametrize("overlap", [6, 10, 30])
def test_a_convolution_gives_the_untiled_result(scale, size, overlap):
    network, image = convolutions(scale), torch.rand(3, *size)
    with torch.no_grad():
        wanted = network(image[None])[0]
    out = restore_tiled(network, image, overlap=overlap, scale=scale, margin=3)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)


def test_without_a_margin_padding_would_be_seen():
    network, image = convolutions(), torch.rand(3, 97, 131)
    with torch.no_grad():
        wanted = network(image[None])[0]
    assert (restore_tiled(network, image, overlap=6) - wanted).abs().max() > 1e-3


class Tilted(nn.Module):
    """A network whose neighbouring windows disagree: it adds a slope over its own window."""

    def forward(self, x):
        ramp = torch.linspace(-6, 6, x.shape[-1])
        return x + ramp[:, None] + ramp


@pytest.mark.parametrize("axis", [-2, -1])
def test_gradients_across_window_borders_are_those_inside(axis):
    """A hard edge steps by 12 levels; faded windows step by no more than the fade's own slope anywhere."""
    image = torch.zeros(3, 240, 240)
    hard = restore_tiled(Tilted(), image, overlap=0).diff(dim=axis).abs()
    faded = restore_tiled(Tilted(), image, overlap=16).diff(dim=axis).abs()
    assert hard.max() > 11
    assert faded.max() < 12 * np.pi / 2 / 16 + 0.3


@pytest.mark.parametrize(
    "network, scale", [(EDSR(2), 2), (SwinIR(2), 2), (convolutions(), 1)], ids=["EDSR", "SwinIR", "plain"]
)
def test_networks_of_others(network, scale):
    """Each is its own answer where one window covers the image, and near its untiled one where many do."""
    network.eval()
    with torch.no_grad():
        small, large = torch.rand(1, 3, 48, 48), torch.rand(1, 3, 90, 110)
        torch.testing.assert_close(restore_tiled(network, small, scale=scale), network(small), rtol=1e-4, atol=1e-4)
        wanted = network(large)
    out = restore_tiled(network, large, scale=scale, overlap=24, margin=12)
    assert out.shape == wanted.shape
    assert (out - wanted).abs().mean() < 0.05 * wanted.std()


@pytest.mark.parametrize("size", [(1, 1), (5, 60), (47, 49), (48, 48), (61, 97)])
@pytest.mark.parametrize("blend", ["blend", "official"])
def test_any_size_and_any_tile_puts_the_image_together(size, blend):
    for tile, overlap in ((48, 10), (20, 19), (33, 0), (64, 50)):
        image = torch.rand(2, 3, *size)
        out = restore_tiled(lambda x: x, image, tile=tile, overlap=overlap, blend=blend)
        torch.testing.assert_close(out, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_batches_do_not_matter_and_are_never_larger(batch_size):
    seen, shares = [], []

    def network(x):
        seen.append(len(x))
        return convolutions()(x)

    image = torch.rand(2, 3, 100, 140)
    out = restore_tiled(network, image, batch_size=batch_size, progress=shares.append)
    torch.testing.assert_close(out, restore_tiled(convolutions(), image), rtol=0, atol=1e-5)
    assert max(seen) <= batch_size and sum(seen) == 2 * 3 * 4
    assert sum(shares) == pytest.approx(1) and len(shares) == len(seen)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_arrays_stay_what_they_are(dtype, channels):
    values = np.random.default_rng(0).random((70, 60, *channels)) * {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    image = values.astype(dtype)
    out = restore_tiled(lambda x: x, image)
    assert out.dtype == dtype and out.shape == image.shape
    assert np.abs(out.astype(np.float64) - image).max() <= (1e-6 if dtype == np.float32 else 0)


def test_numbers_of_channels_may_change():
    out = restore_tiled(lambda x: x.mean(1, keepdim=True), torch.rand(3, 60, 60))
    assert out.shape == (1, 60, 60)


def test_integers_are_clamped_and_rounded():
    image = np.full((50, 50, 3), 100, np.uint8)
    assert restore_tiled(lambda x: x * 9, image).min() == 255
    assert restore_tiled(lambda x: -x, image).max() == 0
    assert set(np.unique(restore_tiled(lambda x: x + 0.6, image))) == {101}


DISK = """
import sys
import numpy as np
import torch
from ipt_fast.tiling import restore_tiled

torch.set_num_threads(1)
source = np.lib.format.open_memmap(sys.argv[1], mode="r")
target = np.lib.format.open_memmap(sys.argv[2], mode="w+", dtype=np.uint8, shape=source.shape)
peak = 0

def watch(share):
    global peak
    anonymous = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    peak = max(peak, int(anonymous.split()[1]) * 1024)

for height in (2000, 16000):
    restore_tiled(lambda x: 255 - x, source[:height], 256, 16, batch_size=8, out=target[:height], progress=watch)
    print(peak)
target.flush()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_image_on_disk_goes_through_in_strips(tmp_path):
    """Eight times the image, 384 MB in floats, needs hardly more memory than the first 2,000 rows do."""
    shape = 16000, 2000, 3
    source = np.lib.format.open_memmap(tmp_path / "in.npy", mode="w+", dtype=np.uint8, shape=shape)
    source[:] = np.arange(shape[0], dtype=np.uint16)[:, None, None] % 251
    source.flush()
    command = [sys.executable, "-c", DISK, str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    assert "Warning" not in said.stderr
    short, long = map(int, said.stdout.split())
    assert long < short + 9 * (9 * 3 * 256**2 * 4)  # nine rows of nine windows, 64 MB
    out = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert np.array_equal(out[::997], 255 - source[::997])


def test_memory_that_runs_out_costs_speed_alone():
    def greedy(x):
        if len(x) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return x

    image = torch.rand(3, 100, 100)
    with pytest.warns(ResourceWarning, match="out of memory with 9 windows at once, going on with 4"):
        out = restore_tiled(greedy, image)
    torch.testing.assert_close(out, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"overlap": 48}, "overlap must be less than tile"),
        ({"margin": 6}, "at least twice the margin.*overlap=10, margin=6"),
        ({"tile": 3, "overlap": 0, "blend": "official"}, "at least 4 pixels"),
        ({"scale": 2}, r"made \[9, 3, 48, 48\] of windows.*scale=2 it has to make \[9, C, 96, 96\]"),
        ({"network": lambda x: x[0]}, r"made \[3, 48, 48\]"),
        ({"network": lambda x: None}, "made NoneType"),
        ({"image": torch.rand(50, 50)}, r"float32 tensor \[50, 50\]"),
        ({"image": torch.rand(3, 0, 50)}, r"\[3, 0, 50\]"),
        ({"image": np.zeros((5, 0, 3), np.uint8)}, r"\[5, 0, 3\]"),
        ({"image": np.zeros((5, 5, 3), np.int64)}, "array of uint8, uint16.*got int64"),
        ({"image": [1, 2]}, "got list"),
        ({"out": np.zeros((100, 100, 3))}, "and out"),
        ({"image": np.zeros((60, 70, 3), np.uint8), "out": np.zeros((60, 60, 3), np.uint8)}, r"out must be \[60, 70"),
    ],
)
def test_errors_say_what_is_needed(changes, message):
    arguments = {"network": lambda x: x, "image": torch.rand(3, 100, 100), **changes}
    with pytest.raises(ValueError, match=message):
        restore_tiled(**arguments)


def test_gradients_are_not_kept_and_the_caller_s_mode_stays():
    network = convolutions()
    out = restore_tiled(network, torch.rand(3, 60, 60, requires_grad=True))
    assert not out.requires_grad and torch.is_grad_enabled()
