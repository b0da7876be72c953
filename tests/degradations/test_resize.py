"""Resizing by any fraction: against the exact whole-number bicubic, and against Pillow's away from the border."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.degradations.bicubic import imresize
from ipt_fast.degradations.resize import resize_array


def picture(height, width, dtype=np.uint8, top=256):
    return np.random.default_rng(0).integers(0, top, (height, width, 3)).astype(dtype)


@pytest.mark.parametrize("scale", [2, 3, 4, 7, Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)])
def test_scales_that_the_exact_one_has_give_the_same_to_the_last_bit(scale):
    image = picture(37, 53)
    exact = imresize(torch.from_numpy(image).permute(2, 0, 1), Fraction(scale)).byte().permute(1, 2, 0).numpy()
    assert np.array_equal(resize_array(image, Fraction(scale)), exact)


@pytest.mark.parametrize("scale", [Fraction(3, 4), Fraction(5, 8), Fraction(5, 4), Fraction(2, 3), Fraction(27, 20)])
def test_other_fractions_are_pillows_bicubic_away_from_the_border(scale):
    image = picture(240, 120, np.float32, 1000) / 999
    ours = resize_array(image, scale)
    size = int(120 * scale), int(240 * scale)
    assert ours.shape == (size[1], size[0], 3) and ours.dtype == np.float32
    theirs = np.array(Image.fromarray(image[..., 1]).resize(size, Image.Resampling.BICUBIC))
    assert np.abs(ours[8:-8, 8:-8, 1] - theirs[8:-8, 8:-8]).max() < 1e-5


@pytest.mark.parametrize("dtype, value", [(np.uint8, 255), (np.uint16, 65535), (np.float32, 0.7)])
def test_an_even_image_stays_what_it_is_up_to_its_border(dtype, value):
    for scale in (Fraction(3, 4), Fraction(67, 100), Fraction(19, 10), Fraction(1)):
        out = resize_array(np.full((5, 9), value, dtype), scale)
        assert out.dtype == dtype and np.allclose(out, value, atol=1e-6), scale
        assert out.shape == (-(-5 * scale.numerator // scale.denominator), -(-9 * scale.numerator // scale.denominator))


def test_sixteen_bits_are_not_those_of_eight():
    image = 16000 + picture(24, 24, np.uint16, 30000)  # far enough from where values are clamped
    out = resize_array(image, Fraction(3, 4))
    floats = resize_array(image.astype(np.float32), Fraction(3, 4))
    assert np.abs(out - floats).max() <= 1.5  # rounded twice


@pytest.mark.parametrize(
    "image, scale, message",
    [
        (picture(4, 4), Fraction(1, 101), "scale must be 1/100 to 100"),
        (picture(4, 4), Fraction(2**20, 2**20 - 1), "denominator up to 10000, got 1048576"),
        (picture(4, 4).astype(float), Fraction(2), "must be uint8, uint16 or float32"),
    ],
)
def test_what_is_refused(image, scale, message):
    with pytest.raises(ValueError, match=message):
        resize_array(image, scale)
