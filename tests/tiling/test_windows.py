"""Where windows lie, and that their weights put an image together again."""

import itertools

import pytest
import torch

from ipt_fast.tiling.windows import blend_axis, official_axis, tiling


def put_together(length, size, scale, axis):
    """Return the sum of the weights at every output pixel, from windows inside the image only."""
    total = torch.zeros(length * scale, dtype=torch.float64)
    for start, row in zip(axis.starts, axis.weights, strict=True):
        assert 0 <= start <= length - size
        total[start * scale : (start + size) * scale] += row
    return total


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("length", [48, 49, 60, 61, 95, 96, 97, 321])
@pytest.mark.parametrize("rule", ["official", 0, 10, 30, 47])
def test_weights_add_up_to_one(length, scale, rule):
    axis = official_axis(length, 48, scale) if rule == "official" else blend_axis(length, 48, scale, rule)
    torch.testing.assert_close(
        put_together(length, 48, scale, axis), torch.ones(length * scale, dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("height, width, overlap, count", [(321, 481, 10, 117), (48, 48, 10, 1), (49, 48, 10, 2)])
def test_number_of_windows(height, width, overlap, count):
    tiles = tiling(height, width, 48, 1, overlap, "blend")
    assert len(tiles.rows.starts) * len(tiles.columns.starts) == count


@pytest.mark.parametrize("overlap", [1, 10, 24])
def test_neighbours_overlap_at_least_as_asked(overlap):
    for length in range(49, 200):
        starts = blend_axis(length, 48, 1, overlap).starts
        assert max(b - a for a, b in itertools.pairwise(starts)) <= 48 - overlap


def test_blend_weights_rise_without_jumps():
    """From one pixel to the next a weight changes by no more than a squared sine over ten pixels does."""
    weights = blend_axis(481, 48, 1, 10).weights
    assert weights[1].diff().abs().max() < 0.17
    assert weights[1, 0] < 0.01


def test_official_weights_are_the_central_half():
    axis = official_axis(48 + 10 * 12 + 5, 48, 1)
    assert axis.starts[:3] == (0, 12, 24) and axis.starts[-1] == 125
    assert axis.weights[3].tolist() == [0.0] * 12 + [0.5] * 24 + [0.0] * 12
    assert axis.weights[0, :12].tolist() == [1.0] * 12
