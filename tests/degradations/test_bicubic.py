"""Bicubic resizing against MATLAB's files, against exact fractions, and against products of low precision."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ipt_fast.degradations.bicubic import bicubic_down, bicubic_up, imresize, resize_matrix, resize_planes

SET5 = ("baby", "bird", "butterfly", "head", "woman")


def photo(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def picture(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SET5)
def test_set5_is_shrunk_to_the_last_bit(shared, name, scale):
    large = picture(shared / f"data/Set5/HR/{name}.png")
    height, width = (side - side % scale for side in large.shape[1:])
    small = picture(shared / f"data/Set5/LR_bicubic/X{scale}/{name}x{scale}.png")
    assert torch.equal(bicubic_down(large[:, :height, :width], scale), small.float())


def cubic(x):
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    return Fraction(-1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x < 2 else Fraction(0)


def exact_line(line, scale):
    """One line of pixels by the definition: a continuous convolution, mirrored at the border, rounded half up."""
    size, widen = len(line), min(scale, 1)
    out = []
    for i in range(math.ceil(size * scale)):
        centre = (i + Fraction(1, 2)) / scale - Fraction(1, 2)
        reach = math.ceil(2 / widen) + 1
        total = Fraction(0)
        for j in range(math.floor(centre) - reach, math.floor(centre) + reach + 1):
            k = j % (2 * size)
            total += widen * cubic(widen * (centre - j)) * line[min(k, 2 * size - 1 - k)]
        out.append(min(255, max(0, math.floor(total + Fraction(1, 2)))))
    return out


def exact_resize(image, scale):
    columns = [exact_line(column, scale) for column in zip(*image, strict=True)]  # height first
    return [exact_line(list(row), scale) for row in zip(*columns, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    scale=st.sampled_from([Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2), Fraction(3), Fraction(1, 8)]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    levels=st.sampled_from([(0, 255), (0, 1), (100, 140)]),
    seed=st.integers(0, 99),
)
def test_any_size_equals_exact_fractions(scale, height, width, levels, seed):
    # Black and white pixels overshoot and clamp; neighbouring levels give many ties at one half.
    low, high = levels
    image = np.random.default_rng(seed).integers(low, high + 1, (height, width))
    if levels == (0, 255):
        image = np.where(image > 127, 255, 0)
    result = imresize(torch.from_numpy(image.astype(np.uint8)), scale)
    assert result.tolist() == exact_resize(image.tolist(), scale)


@settings(max_examples=30, deadline=None)
@given(
    scale=st.sampled_from([2, 3, 4]),
    top=st.integers(0, 10),
    left=st.integers(0, 10),
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_a_crop_with_its_margin_equals_the_crop_of_the_shrunk_photo(scale, top, left, rows, columns, seed):
    whole = photo((top + rows + 9) * scale, (left + columns + 9) * scale, seed)
    expected = bicubic_down(whole, scale)[:, top + 2 : top + 2 + rows, left + 2 : left + 2 + columns]
    crop = whole[:, top * scale : (top + rows + 4) * scale, left * scale : (left + columns + 4) * scale]
    assert torch.equal(resize_planes(crop, Fraction(1, scale), cut=2), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_margin_of_one_pixel_is_too_small(scale):
    """The kernel reaches two pixels of the small image: what the margin of two is for."""
    whole = photo(30 * scale, 30 * scale)
    crop = whole[:, 10 * scale : 20 * scale, 10 * scale : 20 * scale]
    expected = bicubic_down(whole, scale)[:, 11:19, 11:19]
    assert not torch.equal(resize_planes(crop, Fraction(1, scale), cut=1), expected)


def rounded_to(bits, x):
    """To that many bits of mantissa, the leading one included: 11 for TF32 and float16, 8 for bfloat16."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent).to(x.dtype)


def low_precision(monkeypatch, bits):
    """Make every product take its factors in that precision, as tensor cores do; sums stay in float32."""
    product = torch.Tensor.__matmul__
    calls = []

    def matmul(left, right):
        calls.append(1)
        return product(rounded_to(bits, left), rounded_to(bits, right))

    monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)
    return calls


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tf32_products_change_nothing(monkeypatch, scale):
    """On a GPU the products may run in TF32 (a process-wide setting): their factors are whole numbers that fit."""
    image = photo(60, 84)
    expected = bicubic_down(image, scale)
    calls = low_precision(monkeypatch, 11)
    assert torch.equal(bicubic_down(image, scale), expected)
    assert len(calls) == 2


def test_the_tf32_check_can_fail(monkeypatch):
    """Weights that sum to one instead of whole numbers are off by a level in some pixels at x3."""
    columns = torch.randint(0, 256, (200, 60, 1), generator=torch.Generator().manual_seed(0))
    expected = bicubic_down(columns.expand(-1, -1, 3).byte(), 3)  # [200, 20, 1]: flat rows stay as they are
    weights, place, denominator = resize_matrix(60, Fraction(1, 3))
    matrix = torch.zeros(20, 60)
    for row in range(20):
        matrix[row].index_add_(0, torch.tensor(place[row]), torch.tensor(weights[row]).float() / denominator)

    def shrunk():
        return (matrix @ columns.float()).add_(0.5).floor_().clamp_(0, 255)

    assert (shrunk() != expected).float().mean() < 0.003  # ties, which float32 does not always meet
    low_precision(monkeypatch, 11)
    assert (shrunk() != expected).float().mean() > 0.008


def test_autocast_changes_nothing():
    image = photo(60, 84)
    expected = bicubic_down(image, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bicubic_down(image, 4), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_gpu_gives_the_same_bits_with_tf32_on(scale):
    image = photo(480, 600)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert torch.equal(bicubic_down(image.cuda(), scale).cpu(), bicubic_down(image, scale))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_large_images_are_made_in_bands():
    image = photo(700, 90)[:1]
    whole = bicubic_down(image, 2)
    assert whole.shape == (1, 350, 45)
    part = resize_planes(image[:, 200:500], Fraction(1, 2), cut=2)
    assert torch.equal(part, whole[:, 102:248, 2:-2])


def test_sides_are_rounded_up_and_leading_axes_kept():
    assert bicubic_down(photo(61, 47), 4).shape == (3, 16, 12)
    assert bicubic_up(photo(7, 5)[0], 3).shape == (21, 15)
    images = torch.stack([photo(16, 24, seed) for seed in range(6)]).reshape(2, 3, 3, 16, 24)
    out = bicubic_down(images, 2)
    assert out.shape == (2, 3, 3, 8, 12) and out.dtype == torch.float32
    assert torch.equal(out[1, 2], bicubic_down(images[1, 2], 2))


def test_strides_do_not_matter():
    image = photo(40, 60).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(bicubic_down(image, 4), bicubic_down(image.contiguous(), 4))


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_flat_images_stay_flat(level):
    image = torch.full((1, 37, 29), level, dtype=torch.uint8)
    for scale in (2, 3, 4):
        assert (bicubic_down(image, scale) == level).all() and (bicubic_up(image, scale) == level).all()


@pytest.mark.parametrize("scale", [0.5, 2])
def test_float_images_are_rounded_and_clamped_first(scale):
    image = torch.rand(20, 24, generator=torch.Generator().manual_seed(0)) * 300 - 20
    image[0, :4] = torch.tensor([10.5, 11.5, 254.5, 99.49])  # halves are rounded up
    whole = torch.tensor([[min(255, max(0, math.floor(x + 0.5))) for x in row] for row in image.tolist()]).byte()
    kept = image.clone()
    assert torch.equal(imresize(image, scale), imresize(whole, scale))
    assert torch.equal(image, kept)


def test_weights_are_whole_numbers_that_sum_to_their_denominator():
    for scale in (Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2), Fraction(3), Fraction(4)):
        weights, place, denominator = map(np.array, resize_matrix(24, scale))
        assert (weights.sum(1) == denominator).all()
        assert np.abs(weights).max() < 1 << 11  # TF32 and float16 hold 11 bits
        assert place.min() >= 0 and place.max() < 24


@pytest.mark.parametrize("scale", [0, 1, 1.5, 9, 1 / 9, -2, 0.4, 2.001])
def test_other_scales_are_refused(scale):
    with pytest.raises(ValueError, match=rf"scale is {scale}; it has to be a whole number from 2 to 8, or one over it"):
        imresize(photo(24, 24), scale)


def test_an_image_needs_two_axes():
    with pytest.raises(ValueError, match=r"image must be \[..., H, W\] \(got shape \[24\]\)"):
        imresize(torch.zeros(24), 0.5)
