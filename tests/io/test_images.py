"""Reading image files of every kind."""

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.io.images import ImageError, array_to_tensor, read_image, to_uint8
from ipt_fast.io.scan import image_files

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


def test_sixteen_bit_colour_is_said(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(6 * 4) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert "16 bits a channel" in read_image(path).notes[0]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), (1, 2, 3)).save(tmp_path / "turned.jpg", exif=exif)
    image = read_image(tmp_path / "turned.jpg")
    assert image.pixels.shape == (8, 4, 3) and "upright" in image.notes[0]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (0, 128, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "a.gif")
    assert image.pixels.max() == 0 and "first of 3 frames" in image.notes


@pytest.mark.parametrize(
    "content, message", [(b"text", "not an image"), (None, "cannot be read"), (b"", "not an image")]
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


def test_files_of_a_folder_by_name(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in image_files(tmp_path)] == ["a.jpg", "b.PNG"]


def test_arrays_there_and_back():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(array_to_tensor(pixels).float() + 0.4), pixels)
    assert to_uint8(torch.full((3, 1, 1), 300.0)).tolist() == [[[255, 255, 255]]]
    with pytest.raises(ValueError, match="needs a uint8 image"):
        array_to_tensor(pixels.astype(float))
