"""Writing image files: what a kind of file can hold is kept, what it cannot is said."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from ipt_fast.io.images import ImageError, read_image
from ipt_fast.io.metadata import Metadata
from ipt_fast.io.write import WRITABLE, write_image

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DEEP = np.random.default_rng(0).integers(0, 65536, (30, 40, 4), dtype=np.uint16)
KEEPS = {".png": True, ".webp": True, ".tif": True, ".jp2": True, ".jpg": False, ".avif": False}


def exif():
    """EXIF of a camera: its name, an orientation, an exposure time, a place, and what is of its own file alone."""
    data = Image.Exif()
    data[0x010F], data[0x0112], data[0x0100] = "Maker", 6, 4000
    data[0x8769] = {0x829A: 0.5, 0xA002: 4000, 0x927C: b"note"}
    data[0x8825] = {1: "N"}
    return data


@pytest.mark.parametrize("suffix", [suffix for suffix in KEEPS if suffix in WRITABLE])
def test_pixels_are_kept_without_loss_unless_a_quality_is_the_kinds_own(tmp_path, suffix):
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    assert write_image(picture, tmp_path / f"a{suffix}") == ()
    again = np.array(Image.open(tmp_path / f"a{suffix}").convert("RGB")).astype(float)
    error = np.abs(again - np.array(picture)).max()
    assert error == 0 if KEEPS[suffix] else 0 < error < 40


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("deep", [False, True])
def test_profile_and_exif_travel_and_the_orientation_is_applied_once(tmp_path, suffix, deep):
    if suffix not in WRITABLE:
        pytest.skip(f"Pillow writes no {suffix} here")
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "in.jpg", exif=exif(), icc_profile=PROFILE)
    image = read_image(tmp_path / "in.jpg")
    assert image.pixels.shape == (40, 30, 3)
    pixels = image.pixels.astype(np.uint16) * 257 if deep else image.pixels
    write_image(pixels, tmp_path / f"a{suffix}", metadata=image.metadata)
    again = Image.open(tmp_path / f"a{suffix}")
    assert again.info["icc_profile"] == PROFILE and again.size == (30, 40)
    found = again.getexif()
    assert found[0x010F] == "Maker" and found.get(0x0112, 1) == 1
    assert suffix == ".tif" or 0x0100 not in found
    assert set(found.get_ifd(0x8769)) == {0x829A} and found.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_there_and_back(tmp_path, suffix, channels):
    path = tmp_path / f"a{suffix}"
    assert write_image(DEEP[..., :channels], path) == ()
    image = read_image(path, deep=True)
    assert image.pixels.dtype == np.uint16 and np.array_equal(image.pixels, DEEP[..., :3])
    assert (image.alpha is None) == (channels == 3) and (channels == 3 or np.array_equal(image.alpha, DEEP[..., 3]))
    assert image.notes == ("16 bits a channel",)
    assert np.array_equal(read_image(path).pixels, DEEP[..., :3] >> 8)


def test_other_programs_read_the_same_sixteen_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    write_image(DEEP[..., :3], tmp_path / "a.tif", metadata=Metadata(PROFILE))
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), DEEP[..., :3])
    for order, suffix in ((">", "big"), ("<", "little")):
        path = tmp_path / f"{suffix}.tif"
        tifffile.imwrite(path, DEEP[..., :3], photometric="rgb", byteorder=order, compression="zlib")
        assert np.array_equal(read_image(path, deep=True).pixels, DEEP[..., :3])
        tifffile.imwrite(path, DEEP[..., :3], photometric="rgb", byteorder=order, rowsperstrip=7)
        assert np.array_equal(read_image(path, deep=True).pixels, DEEP[..., :3])
    tifffile.imwrite(tmp_path / "planes.tif", DEEP[..., :3].transpose(2, 0, 1), photometric="rgb", planarconfig=2)
    with pytest.raises(ImageError, match=r"planes\.tif: .*16-bit colour in separate planes"):
        read_image(tmp_path / "planes.tif")


def test_what_a_format_cannot_keep_is_said(tmp_path):
    metadata = Metadata(PROFILE, exif().tobytes())
    notes = write_image(Image.new("RGBA", (3, 3)), tmp_path / "a.bmp", metadata=metadata)
    assert [note.split(",")[0] for note in notes] == [
        "colour profile dropped", "EXIF data dropped", "alpha channel dropped",
    ]  # fmt: skip
    assert write_image(DEEP, tmp_path / "a.webp") == ("rounded to 8 bits, this kind of file has no more",)
    assert np.array_equal(np.array(Image.open(tmp_path / "a.webp"))[..., 3], np.rint(DEEP[..., 3] / 257))
    long = Metadata(None, exif().tobytes() + bytes(70_000))
    assert write_image(Image.new("RGB", (3, 3)), tmp_path / "a.jpg", metadata=long)[0].startswith("EXIF data dropped")


def test_quality_and_what_is_too_large_for_a_kind(tmp_path):
    picture = Image.effect_noise((80, 60), 60).convert("RGB")
    for suffix in (".jpg", ".webp"):
        write_image(picture, tmp_path / f"low{suffix}", quality=30)
        write_image(picture, tmp_path / f"high{suffix}", quality=95)
        assert (tmp_path / f"low{suffix}").stat().st_size < 0.7 * (tmp_path / f"high{suffix}").stat().st_size
    with pytest.raises(OSError, match=r"wide\.webp: 16384x1 pixels cannot be written so"):
        write_image(Image.new("RGB", (16384, 1)), tmp_path / "wide.webp")
    assert not list(tmp_path.glob("*wide*"))
