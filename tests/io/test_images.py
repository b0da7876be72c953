"""Reading image files of every kind."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from ipt_fast.io.images import ImageError, array_to_tensor, pillow_set, read_image, to_uint8

RAMP = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8


def test_rgb_png_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(image.pixels, pixels) and image.alpha is None and image.notes == ()
    assert torch.equal(image.tensor(), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16", "F"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    if mode == "I;16":
        image, name = Image.fromarray(RAMP.astype(np.uint16) * 257), "a.png"
    elif mode == "F":
        image, name = Image.fromarray(RAMP.astype(np.float32) / 255), "a.tif"
    elif mode in ("LA", "RGBA"):
        image, name = Image.fromarray(RAMP).convert(mode), "a.png"
        image.putalpha(Image.fromarray(255 - RAMP))
    else:
        image, name = Image.fromarray(RAMP).convert(mode), "a.tif" if mode == "CMYK" else "a.png"
    image.save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert read.pixels.shape == (5, 6, 3) and read.pixels.dtype == np.uint8
    if mode not in ("1", "P", "CMYK"):
        assert np.array_equal(read.pixels, np.repeat(RAMP[..., None], 3, 2))
    if mode in ("LA", "RGBA"):
        assert np.array_equal(read.alpha, 255 - RAMP) and read.pil().mode == "RGBA"
    said = {"L": "gray", "1": "gray", "I;16": "16 bits", "CMYK": "CMYK", "LA": "gray", "F": "float"}
    assert said.get(mode, "") in "; ".join(read.notes)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (0, 128, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.gif")
    assert image.pixels.max() == 0 and "first of 3 frames" in image.notes


@pytest.mark.parametrize(
    "content, message",
    [(b"text", "not an image"), (None, "cannot be read"), (b"", r"the file is empty \(zero bytes\)")],
)
def test_bad_files_are_named(content, message, tmp_path):
    path = tmp_path / "bad.png"
    if content is None:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        content = path.read_bytes()[:4000]
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"bad\.png: {message}"):
        read_image(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_image(tmp_path / "none.png")


def float_tiff(path, changed, share=0.0):
    values = np.random.default_rng(0).uniform(0.3, 0.9, (50, 60)).astype(np.float32)
    values.flat[: max(1, int(share * values.size))] = changed
    Image.fromarray(values).save(path)
    return values


@pytest.mark.parametrize("changed, top", [(0.5, 1), (1.01, 1), (40.0, 1)])
def test_one_float_value_over_one_does_not_decide_the_range(changed, top, tmp_path):
    values = float_tiff(tmp_path / "a.tif", changed)
    image = read_image(tmp_path / "a.tif")
    assert np.array_equal(image.pixels[..., 0], np.rint(np.clip(values, 0, top) * 255))
    assert ("clipped" in image.notes[0]) == (changed > 1)


def test_float_and_sixteen_bit_gray_keep_their_bits_where_wanted(tmp_path):
    values = float_tiff(tmp_path / "a.tif", 0.5)
    pixels = read_image(tmp_path / "a.tif", deep=True).pixels
    assert pixels.dtype == np.uint16 and np.array_equal(pixels[..., 1], np.rint(values.astype(float) * 65535))
    Image.fromarray(RAMP.astype(np.uint16) * 257 + 3).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", deep=True)
    assert np.array_equal(image.pixels[..., 2], RAMP.astype(np.uint16) * 257 + 3)
    assert torch.allclose(image.tensor()[0], torch.from_numpy(RAMP + 3 / 257).float())


def test_a_tiff_of_float_colours_is_named_as_what_it_is(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 6, 3), np.float32), photometric="rgb")
    with pytest.raises(ImageError, match=r"a\.tif: a TIFF of 3 channels of 32-bit floats, which is not read; save it"):
        read_image(tmp_path / "a.tif")


def test_a_very_large_image_is_named_and_can_be_let_in(tmp_path, recwarn):
    Image.new("1", (2000, 1000)).save(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS
    with (
        pillow_set(1_999_998),
        pytest.raises(ImageError, match=r"2,000,000 pixels, more than 1,999,998; .*--max-pixels"),
    ):
        read_image(tmp_path / "a.png")
    with pillow_set(2_000_000):
        assert read_image(tmp_path / "a.png").pixels.shape == (1000, 2000, 3)
    assert limit == Image.MAX_IMAGE_PIXELS and not recwarn.list


def test_float_values_up_to_255(tmp_path):
    Image.fromarray(RAMP.astype(np.float32) + 2).save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels[..., 0], RAMP + 2)


@pytest.mark.parametrize("scale, top", [(1, 1), (200, 255)])
def test_float_gray_stays_so_where_that_is_asked_for(scale, top, tmp_path):
    values = np.random.default_rng(0).random((20, 30)).astype(np.float32) * scale
    values[0, :2] = -0.5, 1.5 if top == 1 else 0  # one in a hundred may be over 1
    Image.fromarray(values).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif", floats=True)
    assert image.pixels.dtype == np.float32 and image.pixels.shape == (20, 30, 3) and image.alpha is None
    np.testing.assert_allclose(image.pixels, np.repeat((values / top).clip(0, 1)[..., None], 3, 2), atol=1e-7)
    assert image.notes == (f"float values 0..{top}, gray, 32-bit floats; others clipped",)


@pytest.mark.parametrize(
    "changed, share, message",
    [(np.nan, 0, "nan or infinite"), (np.inf, 0, "nan or infinite"), (4.0, 0.1, "no defined range, 10% over 1"),
     (300.0, 0.6, "no defined range")],
)  # fmt: skip
def test_float_images_without_a_range_are_refused(changed, share, message, tmp_path):
    float_tiff(tmp_path / "a.tif", changed, share)
    with pytest.raises(ImageError, match=rf"a\.tif: cannot be read \(float pixels .*{message}|{message}"):
        read_image(tmp_path / "a.tif")


def test_integers_beyond_16_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: .*integer pixels 70000\.\.70000; needed are those of 16 bits"):
        read_image(tmp_path / "a.tif")


def test_bytes_are_read_like_files_and_as_stored_where_wanted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), (1, 2, 3)).save(tmp_path / "turned.jpg", exif=exif)
    data = (tmp_path / "turned.jpg").read_bytes()
    assert read_image(data).pixels.shape == (8, 4, 3)
    stored = read_image(data, exif=False)
    assert stored.pixels.shape == (4, 8, 3) and stored.notes == ()
    with pytest.raises(ImageError, match=r"^not an image"):
        read_image(b"no image")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    assert np.array_equal(read_image(tmp_path / "a.png").pixels, np.array(wanted))


def test_alpha_can_be_dropped_and_changes_no_colour(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for alpha in ("keep", "drop"):
        image = read_image(tmp_path / "a.png", alpha=alpha)
        assert np.array_equal(image.pixels, pixels[..., :3]) and (image.alpha is None) == (alpha == "drop")


def test_damaged_exif_is_said_and_the_photo_taken_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    data = exif.tobytes()
    order = "little" if data[6:8] == b"II" else "big"
    text = (2).to_bytes(2, order)  # the maker's name, filed under the tag of the width
    data = data.replace((0x010F).to_bytes(2, order) + text, (0x0100).to_bytes(2, order) + text)
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=data)
    assert read_image(tmp_path / "a.jpg").pixels.shape == (8, 4, 3)
    data = data[:12] + b"\xff" * (len(data) - 12)
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=data)
    assert read_image(tmp_path / "a.jpg").pixels.shape == (4, 8, 3)


def test_a_colour_profile_is_kept_where_it_is_one_of_rgb(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", icc_profile=profile)
    assert read_image(tmp_path / "a.png").metadata.icc_profile == profile
    Image.new("L", (4, 4)).save(tmp_path / "a.png", icc_profile=profile[:16] + b"GRAY" + profile[20:])
    image = read_image(tmp_path / "a.png")
    assert image.metadata.icc_profile is None and "colour profile is not one of RGB" in "; ".join(image.notes)


def test_arrays_there_and_back():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(array_to_tensor(pixels).float() + 0.4), pixels)
    assert to_uint8(torch.full((3, 1, 1), 300.0)).tolist() == [[[255, 255, 255]]]
    with pytest.raises(ValueError, match="needs a uint8 image"):
        array_to_tensor(pixels.astype(float))
