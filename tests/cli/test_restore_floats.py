"""``ipt-fast restore`` of TIFF files with float colours."""

import sys

import numpy as np
import pytest
from PIL import Image

from ipt_fast.cli import main
from ipt_fast.io.images import read_image
from ipt_fast.io.metadata import Metadata
from ipt_fast.io.write import write_image

tifffile = pytest.importorskip("tifffile", reason="needs the extra tiff")


def picture(channels=3, height=20, width=30):
    return np.random.default_rng(0).random((height, width, channels)).astype(np.float32)


def run(*arguments):
    return main(["restore", *map(str, arguments), "--fp32"])


@pytest.mark.parametrize("layout", ["float64", "separate", "upside down"])
def test_floats_stay_floats_in_a_tiff(layout, tmp_path, checkpoint, capsys):
    values, path = picture(), tmp_path / "in/a.tif"
    path.parent.mkdir()
    if layout == "separate":
        tifffile.imwrite(path, np.moveaxis(values, -1, 0), photometric="rgb", planarconfig="separate")
    elif layout == "upside down":
        tifffile.imwrite(path, values[::-1, ::-1], photometric="rgb", extratags=[(274, "H", 1, 3, True)])
    else:
        tifffile.imwrite(path, values.astype(layout), photometric="rgb")
    write_image(np.rint(values * 65535).astype(np.uint16), tmp_path / "b.png")
    common = ["--task", "sr2", "--checkpoint", checkpoint]
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--ext", ".tif", *common) == 0
    assert "(32-bit floats" in capsys.readouterr().err
    out = tifffile.imread(tmp_path / "out/a.tif")
    assert out.dtype == np.float32 and out.shape == (40, 60, 3) and out.min() >= 0 and out.max() <= 1
    assert np.abs(out * 65535 - np.rint(out * 65535)).mean() > 0.2  # no steps of 16 bits
    assert "shape" not in tifffile.TiffFile(tmp_path / "out/a.tif").pages[0].description  # that of the input
    assert run(tmp_path / "b.png", "-o", tmp_path / "c.png", *common) == 0
    assert np.abs(out - read_image(tmp_path / "c.png", deep=True).pixels / 65535).max() < 1e-3


@pytest.mark.parametrize("top, said", [(1, "0..1"), (255, "0..255")])
def test_gray_floats_become_floats_of_three_channels_as_all_gray_does(top, said, tmp_path, checkpoint, capsys):
    values = picture(3)[..., 0]
    tifffile.imwrite(tmp_path / "gray.tif", values * top)
    tifffile.imwrite(tmp_path / "colour.tif", np.repeat(values[..., None], 3, 2), photometric="rgb")
    for name in ("gray", "colour"):
        common = ["-o", tmp_path / f"{name}_out.tif", "--task", "sr2", "--checkpoint", checkpoint]
        assert run(tmp_path / f"{name}.tif", *common) == 0
    assert f"(float values {said}, gray, 32-bit floats)" in capsys.readouterr().err
    gray, colour = (tifffile.imread(tmp_path / f"{name}_out.tif") for name in ("gray", "colour"))
    assert gray.dtype == np.float32 and gray.shape == (40, 60, 3)
    assert np.abs(gray - colour).max() < 1e-5


def test_gray_floats_need_no_extra_and_a_range(tmp_path, checkpoint, monkeypatch, capsys):
    values = picture(3)[..., 0]
    monkeypatch.setitem(sys.modules, "tifffile", None)
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray(values * 300).save(tmp_path / "b.tif")
    arguments = ["--task", "derain", "--checkpoint", checkpoint, "--ext", "same"]
    assert run(tmp_path / "a.tif", tmp_path / "b.tif", "-o", tmp_path / "out", *arguments) == 1
    said = capsys.readouterr().err
    assert "b.tif: cannot be read (float pixels of no defined range" in said and "1 of 2 images failed" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.tif"]


def test_what_another_kind_of_file_loses_is_said(tmp_path, checkpoint, capsys):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    write_image(picture(4), tmp_path / "a.tif", metadata=Metadata(b"\0" * 16 + b"RGB " + b"\0" * 108, exif.tobytes()))
    common = [tmp_path / "a.tif", "--task", "sr2", "--checkpoint", checkpoint, "--outscale", "1.5", "-o"]
    for kind, said, dtype in (("png", "rounded to 16 bits", np.uint16), ("webp", "rounded to 8 bits", np.uint8)):
        assert run(*common, tmp_path / f"b.{kind}") == 0
        assert said in capsys.readouterr().err
        out = read_image(tmp_path / f"b.{kind}", deep=True)
        assert out.pixels.shape == (30, 45, 3) and out.pixels.dtype == dtype and out.alpha.shape == (30, 45)
    assert run(*common, tmp_path / "b.tif", "--compare") == 0 and "rounded" not in capsys.readouterr().err
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        tags = {tag.code: tag.value for tag in file.pages[0].tags}
        assert file.pages[0].asarray().shape == (30, 45, 4) and tags[271] == "Maker" and len(tags[34675]) == 128


@pytest.mark.parametrize(
    "spot, reason",
    [
        (np.nan, "float pixels that are nan or infinite"),
        (np.inf, "float pixels that are nan or infinite"),
        (1.5, "float pixels from 0 to 1.5; needed are 0..1"),
        (-0.5, "float pixels from -0.5 to 0.9; needed are 0..1"),
        (None, "5 float channels; needed are 3, or 4 with alpha"),
    ],
)
def test_values_of_no_defined_range_are_refused_by_name(spot, reason, tmp_path, checkpoint, capsys):
    values = np.zeros((8, 8, 3 if spot is not None else 5), np.float32)
    values[0, 0, 0], values[3, 3, 1] = 0.9, 0 if spot is None else spot
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    assert run(tmp_path / "a.tif", "-o", tmp_path / "b.tif", "--task", "derain", "--checkpoint", checkpoint) == 1
    assert f"failed: {tmp_path}/a.tif: cannot be read ({reason})" in capsys.readouterr().err
    assert not (tmp_path / "b.tif").exists()


def test_without_its_extra(tmp_path, checkpoint, monkeypatch, capsys):
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert run(tmp_path / "a.tif", "-o", tmp_path / "b.tif", "--task", "derain", "--checkpoint", checkpoint) == 1
    assert "a.tif: a TIFF of float colours needs tifffile; pip install 'ipt-fast[tiff]'" in capsys.readouterr().err


def test_floats_beyond_max_pixels_are_refused(tmp_path, checkpoint, capsys):
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb")
    arguments = [tmp_path / "a.tif", "-o", tmp_path / "b.tif", "--task", "derain", "--checkpoint", checkpoint]
    assert run(*arguments, "--max-pixels", "598") == 1
    assert (
        "a.tif: cannot be read (600 pixels, more than 598; restore and eval have --max-pixels"
        in capsys.readouterr().err
    )
    assert run(*arguments, "--max-pixels", "600") == 0
