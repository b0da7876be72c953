"""Gaussian noise: its level, its clipping, and what it depends on."""

import math

import pytest
import torch

from ipt_fast.degradations import noise
from ipt_fast.degradations.noise import add_noise

GRAY = 128


def gray(batch=8, height=64, width=64, level=GRAY):
    return torch.full((batch, 3, height, width), level, dtype=torch.uint8)


@pytest.mark.parametrize("sigma", [0.5, 10, 30])
def test_noise_has_its_level_and_no_mean(sigma):
    clean = gray(16)
    r = (add_noise(clean, torch.arange(16), sigma) - clean).double()
    n = r.numel()
    assert abs(r.mean()) < 5 * sigma / math.sqrt(n)
    assert abs(r.std() / sigma - 1) < 5 / math.sqrt(2 * n)
    assert abs((r**3).mean()) / sigma**3 < 5 * math.sqrt(15 / n)


def test_channels_neighbours_and_images_are_independent():
    r = (add_noise(gray(16), torch.arange(16), 20) - GRAY).double() / 20  # [16, 3, 64, 64]
    bound = 5 / math.sqrt(r.numel() / 3)
    assert abs((r[:, 0] * r[:, 1]).mean()) < bound and abs((r[:, 0] * r[:, 2]).mean()) < bound
    assert abs((r[:, 1] * r[:, 2]).mean()) < bound
    assert abs((r[..., 1:] * r[..., :-1]).mean()) < bound and abs((r[..., 1:, :] * r[..., :-1, :]).mean()) < bound
    assert abs((r[1:] * r[:-1]).mean()) < bound


def test_noise_is_clipped_and_not_rounded():
    dark, bright = add_noise(gray(level=0), torch.arange(8), 50), add_noise(gray(level=255), torch.arange(8), 50)
    assert dark.min() == 0 and bright.max() == 255
    assert abs((dark == 0).double().mean() - 0.5) < 0.01 and abs((bright == 255).double().mean() - 0.5) < 0.01
    assert (dark != dark.round()).double().mean() > 0.49


def test_same_seed_same_noise_other_seed_other_noise():
    clean = gray(3)
    seeds = torch.tensor([7, 8, 7])
    out = add_noise(clean, seeds, 30)
    assert torch.equal(out, add_noise(clean, seeds, 30))
    assert torch.equal(out[0], out[2])
    assert (out[0] != out[1]).double().mean() > 0.99


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 2**32])
def test_all_bits_of_the_seed_count(seed):
    one, other = add_noise(gray(2, 16, 16), torch.tensor([seed, seed ^ (1 << 40)]), 30)
    assert (one != other).double().mean() > 0.98


def test_an_image_does_not_depend_on_its_batch_or_size():
    clean = torch.randint(0, 256, (5, 3, 40, 56), dtype=torch.uint8)
    seeds = torch.tensor([4, -9, 1 << 40, 3, 77])
    out = add_noise(clean, seeds, 25)
    for b in range(5):
        assert torch.equal(out[b : b + 1], add_noise(clean[b : b + 1], seeds[b : b + 1], 25))
    assert torch.equal(out[..., :21, :33], add_noise(clean[..., :21, :33], seeds, 25))


@pytest.mark.parametrize("pixels", [1, 7 * 9 * 2, 1 << 20])
def test_the_size_of_the_parts_changes_nothing(monkeypatch, pixels):
    clean, seeds = gray(5, 7, 9), torch.arange(5)
    expected = add_noise(clean, seeds, 30)
    monkeypatch.setattr(noise, "PIXELS_AT_ONCE", pixels)
    assert torch.equal(add_noise(clean, seeds, 30), expected)


def test_strides_and_float_images():
    clean = torch.randint(0, 256, (2, 24, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    seeds = torch.arange(2)
    expected = add_noise(clean.contiguous(), seeds, 30)
    assert torch.equal(add_noise(clean, seeds, 30), expected)
    assert torch.equal(add_noise(clean.float(), seeds, 30), expected)


# A changed number here means that a resumed run no longer sees the noise of an unbroken one.
FIRST = {(0, 0): [7.44147, 17.35924, 14.20872], (1, 3): [14.79683, 37.03917, -22.13683]}  # by row, column


def test_the_noise_never_changes():
    out = add_noise(gray(1, 4, 4), torch.tensor([12345]), 30)
    for (row, column), levels in FIRST.items():
        assert (out[0, :, row, column] - GRAY).tolist() == pytest.approx(levels, abs=1e-3)
