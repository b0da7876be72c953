"""Own rain: its statistics are those of Rain100L, and a streak follows from its image's seed and place alone."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.degradations import rain
from ipt_fast.degradations.rain import Streaks, add_rain, draw_layers, draw_streaks, rain_layers

# Medians over the images of Rain100L, and how far ours may lie from them.
FACTS = {"coverage": (0.19, 0.03), "level": (20, 3), "p95": (58, 8), "std": (12, 2)}
HEIGHT, WIDTH = 321, 481  # of its images


def figures(layers):
    """Per image: share of pixels above level 8, median and 95th percentile of these, standard deviation of all."""
    rows = []
    for layer in layers:
        layer = np.asarray(layer, np.float64)
        wet = layer[layer > 8]
        rows.append((len(wet) / layer.size, np.median(wet), np.percentile(wet, 95), layer.std()))
    return dict(zip(FACTS, np.array(rows).T, strict=True))


def direction(layer):
    """Degrees of the streaks from vertical, and how much they agree (0..1), by the structure tensor."""
    gy, gx = np.gradient(np.asarray(layer, np.float64))
    across, along, mixed = (gx * gx).mean(), (gy * gy).mean(), (gx * gy).mean()
    agreement = math.hypot(2 * mixed, across - along) / (across + along)
    return -0.5 * math.degrees(math.atan2(2 * mixed, across - along)), agreement


@pytest.fixture(scope="module")
def layers():
    return rain_layers(torch.arange(100), HEIGHT, WIDTH)


@pytest.mark.parametrize("name", FACTS)
def test_the_median_image_is_like_rain100l(layers, name):
    expected, tolerance = FACTS[name]
    assert abs(np.median(figures(layers)[name]) - expected) < tolerance


@pytest.mark.parametrize("name", FACTS)
def test_light_and_heavy_rain_both_occur(layers, name):
    low, high = np.percentile(figures(layers)[name], [10, 90])
    assert high > 1.6 * low


def test_the_figures_are_those_of_the_real_pairs(shared):
    """What FACTS says is so: on the pairs themselves, taken as rainy less clean."""
    folder = shared / "data/Rain100L"
    real = []
    for number in range(1, 101):
        rainy, clean = (
            np.array(Image.open(folder / f"{kind}/{kind}-{number:03}.png").convert("RGB"), np.int16)
            for kind in ("rain", "norain")
        )
        real.append((rainy - clean).max(2))
    for name, values in figures(real).items():
        assert abs(np.median(values) - FACTS[name][0]) < FACTS[name][1] / 2


def test_streaks_of_an_image_share_one_direction_near_vertical(layers):
    streaks = draw_streaks(torch.arange(100), HEIGHT, WIDTH)
    degrees = torch.atan2(streaks.sin, streaks.cos).rad2deg()
    assert degrees.abs().max() < 35 + 3.6
    means = []
    for image in range(100):
        own = degrees[streaks.image == image]
        assert own.max() - own.min() <= 7.01
        means.append(float(own.mean()))
        seen, agreement = direction(layers[image])
        assert agreement > 0.75
        assert abs(seen - means[-1]) < 6
    assert 10 < np.std(means) < 18  # images differ


def test_streaks_are_20_to_55_pixels_long_and_about_one_wide():
    streaks = draw_streaks(torch.arange(200), HEIGHT, WIDTH)
    length = 2 * streaks.half
    low, middle, high = np.percentile(length, [10, 50, 90])
    assert 17 < low < 25 and 33 < middle < 43 and 50 < high < 72
    assert length.max() <= 100
    assert abs(streaks.sigma.mean() - 0.95) < 0.02 and streaks.sigma.min() >= 0.7 and streaks.sigma.max() <= 1.2
    assert (streaks.level > 0).all()


def one_streak(y=40.0, x=30.0, half=20.0, sigma=0.9, level=100.0, degrees=0.0):
    angle = math.radians(degrees)
    values = (y, x, half, sigma, level, math.cos(angle), math.sin(angle))
    return Streaks(torch.zeros(1, dtype=torch.int64), *(torch.tensor([value]) for value in values))


@pytest.mark.parametrize("degrees", [0.0, 20.0, -38.0])
def test_one_streak_is_drawn_where_it_says(degrees):
    layer = draw_layers(one_streak(degrees=degrees), 1, 80, 64)[0].numpy()
    assert layer[40, 30] == pytest.approx(100, abs=1e-3)  # the centre has the full level
    rows, columns = np.nonzero(layer)
    angle = math.radians(degrees)
    along = (rows - 40) * math.cos(angle) + (columns - 30) * math.sin(angle)
    across = (columns - 30) * math.cos(angle) - (rows - 40) * math.sin(angle)
    assert 17 < along.max() < 20 and -20 < along.min() < -17
    # The cross-section is a Gaussian, full until half of the way to either end.
    inner = np.abs(along) <= 9.9
    expected = 100 * np.exp(-(across**2) / (2 * 0.9**2))
    assert np.abs(layer[rows, columns] - expected)[inner].max() < 0.01
    assert layer[rows, columns][np.abs(along) > 15].max() < 51


def test_no_pixel_of_a_slanted_streak_is_missed():
    """The pixels of a row that the drawing looks at hold all that the streak reaches."""
    for x in np.linspace(30, 31, 7):
        layer = draw_layers(one_streak(x=float(x), degrees=38.5, half=50.0, sigma=1.2), 1, 80, 80)[0].numpy()
        y, columns = np.mgrid[:80, :80]
        angle = math.radians(38.5)
        along = (y - 40) * math.cos(angle) + (columns - x) * math.sin(angle)
        across = (columns - x) * math.cos(angle) - (y - 40) * math.sin(angle)
        taper = np.clip((50 - np.abs(along)) / 25, 0, 1)
        expected = 100 * taper * np.exp(-(across**2) / (2 * 1.2**2)) * (np.abs(across) < 4)
        assert np.abs(layer - expected).max() < 0.02


def test_streaks_add_up():
    pair = Streaks(*(torch.cat([a, b]) for a, b in zip(one_streak(), one_streak(x=31.0), strict=True)))
    apart = draw_layers(one_streak(), 1, 80, 64) + draw_layers(one_streak(x=31.0), 1, 80, 64)
    assert (draw_layers(pair, 1, 80, 64) - apart).abs().max() < 1e-4


def test_same_seed_same_rain_whatever_the_batch():
    seeds = torch.tensor([5, -8, 5, 1 << 50])
    out = rain_layers(seeds, 48, 48)
    assert torch.equal(out, rain_layers(seeds, 48, 48))
    assert torch.equal(out[0], out[2]) and not torch.equal(out[0], out[1])
    for b in range(4):
        assert torch.equal(out[b : b + 1], rain_layers(seeds[b : b + 1], 48, 48))


@pytest.mark.parametrize("height, width", [(48, 48), (1, 1), (7, 131), (200, 90)])
def test_the_top_left_corner_does_not_depend_on_the_size(height, width):
    """Also that all streaks which touch an image are drawn: those of a larger one hold them."""
    seeds = torch.arange(12)
    assert torch.equal(rain_layers(seeds, height, width), rain_layers(seeds, 220, 160)[:, :height, :width])


@pytest.mark.parametrize("rows", [1, 100, 1 << 22])
def test_the_size_of_the_parts_changes_nothing(monkeypatch, rows):
    seeds = torch.arange(2)
    expected = rain_layers(seeds, 24, 24)
    monkeypatch.setattr(rain, "ROWS_AT_ONCE", rows)
    assert torch.equal(rain_layers(seeds, 24, 24), expected)


def test_rain_is_gray_added_and_clipped():
    clean = torch.randint(0, 256, (3, 3, 20, 30), dtype=torch.uint8)
    layers = torch.rand(3, 20, 30) * 200
    expected = (clean.double() + layers.double()[:, None]).clamp(0, 255)
    out = add_rain(clean, layers)
    assert out.dtype == torch.float32 and (out - expected).abs().max() < 1e-4
    assert out.max() == 255
    assert torch.equal(add_rain(clean, torch.zeros(3, 20, 30)), clean.float())


# A changed number here means that a resumed run no longer sees the rain of an unbroken one.
FIRST = (235, 4580.1758)


def test_the_rain_never_changes():
    layer = rain_layers(torch.tensor([12345]), 48, 48)
    assert (int((layer > 8).sum()), float(layer.sum())) == pytest.approx(FIRST, rel=1e-3)
    assert divmod(int(layer.argmax()), 48) == (45, 4) and float(layer.max()) == pytest.approx(30.1516, rel=1e-3)
