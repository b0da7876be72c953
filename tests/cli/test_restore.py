"""``ipt-fast restore`` as a new user tries it."""

import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import save_network
from ipt_fast.cli import main
from ipt_fast.degradations.resize import resize_array
from ipt_fast.inference.prepare import PreparedIPT
from ipt_fast.io.images import read_image
from ipt_fast.io.metadata import Metadata
from ipt_fast.io.write import write_image


def photo(path, size=(30, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    ).save(path)
    return str(path)


def restore(*arguments):
    return main(["restore", *map(str, arguments)])


def test_one_photo_to_one_file_with_a_comparison(tmp_path, checkpoint, capsys):
    out = tmp_path / "big.png"
    code = restore(photo(tmp_path / "a.png"), "-o", out, "--task", "sr2", "--checkpoint", checkpoint, "--compare")
    assert code == 0
    assert Image.open(out).size == (60, 40)
    width, height = Image.open(tmp_path / "big.compare.png").size
    assert width > 2 * 110 and height == 40 + 34  # each half holds its caption
    said = capsys.readouterr().err
    assert "a.png 30x20 -> " in said and "big.png 60x40" in said


def test_folders_globs_and_files_to_a_folder(tmp_path, checkpoint):
    photo(tmp_path / "in/one.png")
    photo(tmp_path / "in/deep/two.jpg")
    photo(tmp_path / "more/three.bmp")
    (tmp_path / "in/notes.txt").write_text("no image")
    out = tmp_path / "out"
    inputs = [tmp_path / "in", f"{tmp_path}/more/*"]
    assert restore(*inputs, "-o", out, "--task", "derain", "--checkpoint", checkpoint) == 0
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*")) == ["deep/two.png", "one.png", "three.png"]


@pytest.mark.parametrize("mode, kept", [("RGBA", "RGBA"), ("LA", "RGBA"), ("L", "RGB"), ("I;16", "RGB")])
def test_kinds_of_images(mode, kept, tmp_path, checkpoint, capsys):
    path = tmp_path / "in.png"
    if mode == "I;16":
        Image.fromarray(np.full((9, 7), 30000, np.uint16)).save(path)
    else:
        photo(path, (7, 9), mode)
    assert restore(path, "-o", tmp_path / "out.png", "--task", "sr3", "--checkpoint", checkpoint) == 0
    out = Image.open(tmp_path / "out.png")
    assert out.mode == kept and out.size == (21, 27)
    assert ("16 bits" in capsys.readouterr().err) == (mode == "I;16")


@pytest.mark.parametrize("options", [["--bf16", "--tile", "48"], ["--fp16"], ["--self-ensemble"],
                                     ["--stitch", "official"], ["--tile_overlap", "0"]])  # fmt: skip
def test_options(options, tmp_path, checkpoint, capsys):
    path, plain, other = photo(tmp_path / "a.png", (60, 50)), tmp_path / "plain.png", tmp_path / "other.png"
    common = ["--task", "derain", "--checkpoint", checkpoint]
    assert restore(path, "-o", plain, *common, "--precision", "fp32") == 0
    assert restore(path, "-o", other, *common, *options) == 0
    short = {"--bf16": "bfloat16", "--fp16": "float16"}.get(options[0], "cpu")
    assert short in capsys.readouterr().err.splitlines()[-2]
    difference = np.array(Image.open(plain)).astype(int) - np.array(Image.open(other))
    assert np.abs(difference).mean() < 40


@pytest.mark.parametrize("text", ["0", "17", "x2", "1/0", "nan", "-2"])
def test_an_output_scale_that_is_none(text, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        restore(photo(tmp_path / "a.png"), "-o", tmp_path / "c.png", f"--outscale={text}")
    assert stop.value.code == 2 and f"{text} is no scale; give a number from 0.1 to 16" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [["--fp16", "--bf16"], ["--fp16", "--precision", "fp32"]])
def test_two_precisions_are_refused(pair, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        restore(photo(tmp_path / "a.png"), "-o", tmp_path / "c.png", *pair)
    assert stop.value.code == 2 and "not allowed with argument --fp16" in capsys.readouterr().err


def test_exif_rotation_and_alpha_in_a_jpeg(tmp_path, checkpoint, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), (200, 100, 50)).save(tmp_path / "turned.jpg", exif=exif)
    photo(tmp_path / "clear.png", mode="RGBA")
    common = ["--task", "derain", "--checkpoint", checkpoint]
    assert restore(tmp_path / "turned.jpg", "-o", tmp_path / "upright.png", *common) == 0
    assert Image.open(tmp_path / "upright.png").size == (20, 30)
    assert restore(tmp_path / "clear.png", "-o", tmp_path / "clear.jpg", *common) == 0
    assert Image.open(tmp_path / "clear.jpg").mode == "RGB"
    said = capsys.readouterr().err
    assert "turned upright" in said and "alpha channel dropped" in said


def test_memory_that_runs_out_is_said_and_the_image_restored(tmp_path, checkpoint, monkeypatch, capsys):
    forward = PreparedIPT.forward

    def greedy(self, x, task):
        if len(x) > 2:
            raise torch.OutOfMemoryError("allocation failed")
        return forward(self, x, task)

    monkeypatch.setattr(PreparedIPT, "forward", greedy)
    path = photo(tmp_path / "a.png", (120, 60))
    arguments = ["--task", "derain", "--checkpoint", checkpoint, "--batch-size", "6"]
    assert restore(path, "-o", tmp_path / "b.png", *arguments) == 0
    assert "out of memory with 6 windows at once, going on with 3" in capsys.readouterr().err
    assert Image.open(tmp_path / "b.png").size == (120, 60)


def test_never_overwrites_unless_told(tmp_path, checkpoint, capsys):
    path, out = photo(tmp_path / "a.png"), tmp_path / "out.png"
    out.write_text("precious")
    arguments = [path, "-o", out, "--task", "derain", "--checkpoint", checkpoint]
    assert restore(*arguments) == 2
    assert out.read_text() == "precious" and "is already there; --force overwrites" in capsys.readouterr().err
    assert restore(*arguments, "--force") == 0
    assert Image.open(out).size == (30, 20)
    assert restore(path, "-o", path, "--task", "derain", "--checkpoint", checkpoint, "--force") == 2
    assert "is the input itself" in capsys.readouterr().err


def test_bad_images_are_named_and_the_others_restored(tmp_path, checkpoint, capsys):
    photo(tmp_path / "in/good.png")
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--task", "sr2", "--checkpoint", checkpoint) == 1
    said = capsys.readouterr().err
    assert "bad.png: not an image" in said and "1 of 2 images failed" in said
    assert (tmp_path / "out/good.png").exists() and not (tmp_path / "out/bad.png").exists()


def test_links_and_folders_that_cannot_be_read_are_named(tmp_path, checkpoint, monkeypatch, capsys):
    photo(tmp_path / "in/good.png")
    os.symlink("loop.jpg", tmp_path / "in/loop.jpg")
    (tmp_path / "in/closed").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert restore(tmp_path / "in", "-o", tmp_path / "out", "--task", "derain", "--checkpoint", checkpoint) == 1
    said = capsys.readouterr().err
    assert "failed: " in said and "closed: Permission denied" in said and "loop.jpg: no such file" in said
    assert "2 of 3 images failed" in said and (tmp_path / "out/good.png").exists()
    assert restore("n" * 300, "-o", tmp_path / "out", "--task", "derain", "--checkpoint", checkpoint) == 2
    assert "File name too long" in capsys.readouterr().err


def test_a_slash_names_a_folder_and_equal_names_are_told_apart(tmp_path, checkpoint):
    for kind in ("a.jpg", "a.png", "b.png"):
        photo(tmp_path / "in" / kind)
    folder = f"{tmp_path / 'results_v1.5'}/"
    assert restore(tmp_path / "in", "-o", folder, "--task", "derain", "--checkpoint", checkpoint) == 0
    assert sorted(path.name for path in (tmp_path / "results_v1.5").iterdir()) == ["a_jpg.png", "a_png.png", "b.png"]


def test_outputs_beside_their_inputs_are_not_taken_for_inputs(tmp_path, checkpoint, capsys):
    photo(tmp_path / "a.png")
    (tmp_path / "raw.heic").write_bytes(b"x")
    common = ["-o", tmp_path, "--task", "derain", "--checkpoint", checkpoint]
    assert restore(tmp_path, *common) == 2
    assert "is the input folder itself; give another, or a --suffix" in capsys.readouterr().err
    for _ in range(2):
        assert restore(tmp_path, *common, "--suffix", "_clean", "--ext", "jpg", "--compare", "--force") == 0
        said = capsys.readouterr().err
    names = ["a.png", "a_clean.compare.png", "a_clean.jpg", "raw.heic"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "left out, no images by their names: 1 .heic" in said and "left out: 2 outputs of an earlier run" in said


def test_an_absolute_output_folder_inside_a_relative_input_is_known(tmp_path, checkpoint, monkeypatch):
    photo(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert restore(".", "-o", tmp_path / "out", "--task", "derain", "--checkpoint", checkpoint, "--force") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_what_is_there_can_be_skipped(tmp_path, checkpoint, capsys):
    photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/b.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_text("precious")
    common = [
        "-o",
        tmp_path / "out",
        "--task",
        "derain",
        "--checkpoint",
        checkpoint,
        "--skip-existing",
        "--ext",
        "same",
    ]
    assert restore(tmp_path / "in", *common) == 0
    assert (tmp_path / "out/a.png").read_text() == "precious" and Image.open(tmp_path / "out/b.jpg").format == "JPEG"
    assert "skipped: 1 image" in capsys.readouterr().err
    (tmp_path / "out/b.jpg").rename(tmp_path / "out/.b.0a1b2c3d.part.jpg")  # as a run leaves it that was killed
    assert restore(tmp_path / "in", *common) == 0 and (tmp_path / "out/b.jpg").exists()
    assert "skipped: 1 image" in capsys.readouterr().err
    assert restore(tmp_path / "in", *common) == 0
    assert "skipped: 2 images" in capsys.readouterr().err


def test_no_option_lets_an_input_or_another_output_be_written_over(tmp_path, checkpoint, assert_refused):
    for name in ("a.png", "a.compare.png", "b/a.jpg"):
        photo(tmp_path / name)
    common = ["--task", "derain", "--checkpoint", checkpoint, "--force"]
    inputs = [tmp_path / "a.png", tmp_path / "a.compare.png"]
    assert_refused("restore", [*inputs, "-o", tmp_path / "out/", *common, "--compare"], "would both become")
    assert_refused("restore", [inputs[1], "-o", f"{tmp_path}/", *common], "a.compare.png is the input itself")
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path / "b/a.jpg", tmp_path / "out/a.png")  # what becomes a.png is another input
    written = [tmp_path / "a.png", tmp_path / "b/a.jpg", "-o", tmp_path / "out", *common, "--ext", "same"]
    assert_refused("restore", written, "out/a.png, an output of")


def test_sixteen_bits_profile_and_exif_go_with_an_image(tmp_path, checkpoint, capsys):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(values, tmp_path / "deep.tif", metadata=Metadata(profile, exif.tobytes()))
    common = ["--task", "sr2", "--checkpoint", checkpoint, "--precision", "fp32"]
    for kind in ("tif", "png"):
        assert restore(tmp_path / "deep.tif", "-o", tmp_path / f"out.{kind}", *common) == 0
        out = read_image(tmp_path / f"out.{kind}", deep=True)
        assert out.pixels.shape == (40, 60, 3) and out.metadata.icc_profile == profile
        assert len(np.unique(out.pixels % 257)) > 200  # more than 256 levels
        assert Image.open(tmp_path / f"out.{kind}").getexif()[0x010F] == "Maker"
    assert restore(tmp_path / "deep.tif", "-o", tmp_path / "out.jpg", *common) == 0
    assert "rounded to 8 bits" in capsys.readouterr().err


@pytest.mark.parametrize("outscale, size", [("2.5", (75, 50)), ("0.5", (15, 10)), ("4", (120, 80))])
def test_an_output_scale_other_than_the_networks(outscale, size, tmp_path, checkpoint, capsys):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    write_image(values, tmp_path / "a.png", metadata=Metadata(profile))
    common = [tmp_path / "a.png", "--task", "sr4", "--checkpoint", checkpoint]
    assert restore(*common, "-o", tmp_path / "plain.png") == 0
    assert restore(*common, "-o", tmp_path / "b.png", "--outscale", outscale, "--compare") == 0
    said = capsys.readouterr().err
    out, plain = Image.open(tmp_path / "b.png"), np.array(Image.open(tmp_path / "plain.png"))
    assert out.size == size and out.mode == "RGBA" and out.info["icc_profile"] == profile
    assert np.array_equal(np.array(out)[..., :3], resize_array(plain[..., :3], Fraction(outscale) / 4))
    assert ("resized bicubically from x4 to x" in said) == (outscale != "4")


def test_the_task_of_a_file_that_has_one(tmp_path, checkpoint, capsys):
    path = photo(tmp_path / "a.png")
    save_network(IPT(IPTConfig(n_feats=4, num_heads=12, num_layers=1, tasks=("sr3",))), tmp_path / "one.pt")
    assert restore(path, "-o", tmp_path / "b.png", "--checkpoint", tmp_path / "one.pt") == 0
    assert Image.open(tmp_path / "b.png").size == (90, 60)
    assert restore(path, "-o", tmp_path / "c.png", "--checkpoint", checkpoint) == 2
    assert "has the tasks sr2, sr3, sr4, derain, denoise30, denoise50; say which with --task" in capsys.readouterr().err


def test_an_image_over_the_limit_is_named_with_the_way_on(tmp_path, checkpoint, capsys):
    path = photo(tmp_path / "a.png")
    common = ["--task", "derain", "--checkpoint", checkpoint, "--max-pixels"]
    assert restore(path, "-o", tmp_path / "b.png", *common, "598") == 1
    assert (
        "a.png: cannot be read (600 pixels, more than 598; restore and eval have --max-pixels"
        in capsys.readouterr().err
    )
    assert restore(path, "-o", tmp_path / "b.png", *common, "600") == 0


def test_names_are_data(tmp_path, checkpoint, capsys):
    name = os.fsdecode(b"\xff[bold]a[red]:dog:.png")
    photo(tmp_path / "in" / name)
    (tmp_path / "in" / f"bad{name}").write_bytes(b"")
    common = ["--task", "derain", "--checkpoint", checkpoint]
    assert restore(tmp_path / "in", "-o", tmp_path / "out", *common) == 1
    said = capsys.readouterr().err
    assert "[bold]a[red]:dog:.png 30x20 ->" in said and "[bold]a[red]:dog:.png: the file is empty" in said
    assert (tmp_path / "out" / name).exists()


def test_unseen_noise_levels_go_to_the_nearest_task(tmp_path, checkpoint, capsys):
    path = photo(tmp_path / "a.png")
    assert restore(path, "-o", tmp_path / "b.png", "--task", "denoise70", "--checkpoint", checkpoint) == 0
    assert "nearest task is denoise50" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": ["nothing.png"]}, "nothing.png: no such file or folder"),
        ({"images": ["EMPTY"]}, "no images in this folder"),
        ({"images": ["A", "B"], "-o": "one.png"}, "2 images cannot all go to"),
        ({"images": ["A", "B"], "-o": "CLASH"}, "would both become"),
        ({"-o": "out.docx"}, "not a kind of image that can be written"),
        ({"-o": "out.gif"}, "a GIF holds 256 colours; take .png"),
        ({"-o": "out.pgm"}, "a PGM holds gray alone; take .png"),
        ({"--suffix": "_x2"}, "names the output; --suffix and --ext are for a folder"),
        ({"--suffix": "/x2", "-o": "out/"}, "it is the end of a file's name"),
        ({"--ext": "gif", "-o": "out/"}, "--ext gif is not a kind that can be written; give one of .jpg"),
        ({"--quality": "80"}, "--quality is for .jpg, .webp and .avif"),
        ({"--quality": "0", "-o": "a.jpg"}, "--quality must be 1 to 100, got 0"),
        ({"--max-pixels": "0"}, "--max-pixels must be at least 1"),
        ({"--task": "blur"}, "task 'blur' is not known"),
        ({"--task": "deblur"}, "has no task deblur; it has sr2"),
        ({"--checkpoint": "none.pt"}, "none.pt: no such checkpoint"),
        ({"--checkpoint": "A"}, "not a checkpoint, or a damaged one"),
        ({"--overlap": "48"}, "--overlap must be 0 to 47"),
        ({"--tile-overlap": "48"}, "--overlap must be 0 to 47"),
        ({"--tile": "64"}, "windows of 48x48 pixels and no others, as its position embedding belongs to them"),
        ({"--jobs": "-1"}, "--jobs must be 0 to 64 threads, got -1"),
        ({"--batch-photos": "0"}, "--batch-photos must be 1 to 4096 photos, got 0"),
        ({"--batch-size": "0"}, "--batch-size must be at least 1"),
        ({"--device": "cuda:99"}, "CUDA devices; give cpu"),
        ({"--device": "abacus"}, "is not a device"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(change, message, tmp_path, checkpoint, assert_refused):
    (tmp_path / "empty").mkdir()
    names = {"A": photo(tmp_path / "a.png"), "B": photo(tmp_path / "b/a.png"), "EMPTY": str(tmp_path / "empty"),
             "CLASH": str(tmp_path / "clash")}  # fmt: skip
    options = {"images": ["A"], "-o": str(tmp_path / "o.png"), "--task": "sr2", "--checkpoint": checkpoint, **change}
    images = [names.get(name, name) for name in options.pop("images")]
    rest = [part for key, value in options.items() for part in (key, names.get(value, value))]
    assert_refused("restore", [*images, *rest], message)
