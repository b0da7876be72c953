import io

import numpy as np
import pytest
from PIL import Image

from ipt_fast.data import decode
from ipt_fast.data.decode import decode_region, decode_rows, keep_rows, mirror_pad
from tests.data.photo_files import jpeg_bytes, pixels


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(params=["simplejpeg", "pillow"])
def decoder(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(decode, "simplejpeg", None)
    elif decode.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("restart", [0, 3])
def test_a_region_is_that_of_the_whole_photo(decoder, subsampling, restart):
    data = jpeg_bytes(pixels(150, 170), subsampling=subsampling, restart_marker_blocks=restart)
    whole = np.array(Image.open(io.BytesIO(data)))
    for top, left in ((0, 0), (17, 5), (40, 100), (102, 122)):
        region = decode_region(data, top, left, 48, 48, "RGB")
        assert (region == whole[top : top + 48, left : left + 48]).all()


def test_only_the_rows_down_to_the_region_are_decoded(decoder):
    data = jpeg_bytes(pixels(400, 120))
    assert decode_rows(data, 48, "RGB").shape[0] < 60


def test_progressive_jpegs_are_decoded_as_a_whole(decoder):
    data = jpeg_bytes(pixels(200, 100), progressive=True)
    assert keep_rows(data, 50) is None
    assert (decode_region(data, 9, 9, 48, 48, "RGB") == np.array(Image.open(io.BytesIO(data)))[9:57, 9:57]).all()


def test_real_photos_decode_to_the_same_rows(decoder, shared):
    for path in sorted((shared / "data/imagenet-sample/train").rglob("*.JPEG"))[::40]:
        data = path.read_bytes()
        image = Image.open(io.BytesIO(data))
        rows = max(48, image.height // 2)
        region = decode_region(data, rows - 48, 0, 48, 48, image.mode)
        assert (region == np.array(image.convert("RGB"))[rows - 48 : rows, :48]).all(), path


def test_gray_becomes_rgb(decoder):
    gray = pixels()[..., 0]
    for kind in ("JPEG", "PNG"):
        out = decode_rows(saved(Image.fromarray(gray), kind), mode="L")
        assert out.shape == (80, 100, 3)
        assert (out[..., 0] == out[..., 1]).all() and (out[..., 0] == out[..., 2]).all()


def test_cmyk_becomes_rgb():
    image = Image.fromarray(pixels()).convert("CMYK")
    out = decode_rows(saved(image, "JPEG", quality=95), mode="CMYK")
    assert np.abs(out.astype(int) - pixels()).mean() < 4


def test_16_bits_keep_their_upper_byte():
    deep = np.arange(80 * 100, dtype=np.uint16).reshape(80, 100) * 8
    out = decode_rows(saved(Image.fromarray(deep), "PNG"), mode="I;16")
    assert (out == (deep >> 8)[..., None]).all()


def test_transparency_is_laid_over_white():
    array = np.dstack([pixels(), np.zeros((80, 100), np.uint8)])
    array[:40, :, 3] = 255
    out = decode_rows(saved(Image.fromarray(array), "PNG"), mode="RGBA")
    assert (out[:40] == array[:40, :, :3]).all()
    assert (out[40:] == 255).all()


def test_exif_rotation_is_not_applied(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, rotated = jpeg_bytes(pixels()), jpeg_bytes(pixels(), exif=exif)
    assert (decode_rows(rotated, mode="RGB") == decode_rows(plain, mode="RGB")).all()


@pytest.mark.parametrize("top, left, message", [(0, 60, "100 pixels wide"), (40, 0, "80 pixels high")])
def test_a_region_outside_the_photo_is_refused(top, left, message):
    with pytest.raises(ValueError, match=rf"{message} and does not hold the region of 48x48 at \({left}, {top}\)"):
        decode_region(jpeg_bytes(pixels()), top, left, 48, 48, "RGB")


def test_padding_mirrors_as_often_as_it_takes():
    small = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    out = mirror_pad(small, 8)
    assert out.shape == (8, 8, 3)
    assert out[:, 0, 0].tolist() == small[[0, 1, 2, 2, 1, 0, 0, 1], 0, 0].tolist()
    assert (out == np.pad(small, ((0, 5), (0, 3), (0, 0)), mode="symmetric")).all()


def test_no_padding_where_none_is_needed():
    large = pixels(60, 70)
    assert (mirror_pad(large, 48) == large[:48, :48]).all()


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", b"\xff\xd8\xff\xd9", b"\xff\xd8ab"])
def test_keep_rows_leaves_what_is_no_jpeg_alone(data):
    assert keep_rows(data, 10) is None
