import io

import numpy as np
import pytest
from PIL import Image

from ipt_fast.data import decode
from ipt_fast.data.decode import decode_rows, keep_rows
from ipt_fast.io.images import read_image
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
        region = decode_rows(data, top + 48, "RGB")[top : top + 48, left : left + 48]
        assert (region == whole[top : top + 48, left : left + 48]).all()


def test_only_the_rows_down_to_the_region_are_decoded(decoder):
    data = jpeg_bytes(pixels(400, 120))
    assert decode_rows(data, 48, "RGB").shape[0] < 60


def test_progressive_jpegs_are_decoded_as_a_whole(decoder):
    data = jpeg_bytes(pixels(200, 100), progressive=True)
    assert keep_rows(data, 50) is None
    assert (decode_rows(data, 57, "RGB") == np.array(Image.open(io.BytesIO(data)))).all()


def test_real_photos_decode_to_the_same_rows(decoder, shared):
    for path in sorted((shared / "data/imagenet-sample/train").rglob("*.JPEG"))[::40]:
        data = path.read_bytes()
        image = Image.open(io.BytesIO(data))
        rows = max(48, image.height // 2)
        region = decode_rows(data, rows, image.mode)[rows - 48 : rows, :48]
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


def test_16_bits_and_alpha_are_read_as_in_restoration():
    deep = np.arange(80 * 100, dtype=np.uint16).reshape(80, 100) * 8
    clear = np.dstack([pixels(), np.arange(8000, dtype=np.uint8).reshape(80, 100)])
    for array in (deep, clear):
        data = saved(Image.fromarray(array), "PNG")
        assert (decode_rows(data) == read_image(data).pixels).all()
    assert (decode_rows(data) == pixels()).all()


def test_exif_rotation_is_not_applied(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, rotated = jpeg_bytes(pixels()), jpeg_bytes(pixels(), exif=exif)
    assert (decode_rows(rotated, mode="RGB") == decode_rows(plain, mode="RGB")).all()


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", b"\xff\xd8\xff\xd9", b"\xff\xd8ab"])
def test_keep_rows_leaves_what_is_no_jpeg_alone(data):
    assert keep_rows(data, 10) is None
