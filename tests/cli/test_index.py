import io

import pytest
from PIL import Image

from ipt_fast.cli import main


def write(path, size=(60, 60)):
    out = io.BytesIO()
    Image.new("RGB", size, (90, 20, 30)).save(out, "JPEG")
    path.write_bytes(out.getvalue())


def test_the_summary_names_what_was_refused_and_why(tmp_path, capsys):
    write(tmp_path / "good.jpg")
    write(tmp_path / "small.jpg", (20, 60))
    for number in range(5):
        (tmp_path / f"zero{number}.jpg").touch()
    (tmp_path / "readme.txt").write_text("text")
    assert main(["index", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["usable 1 photos (1 JPEG)", "refused 6", "5 zero-byte"]
    assert "and 2 more; --refused names them all" in lines
    assert f"{tmp_path}/small.jpg (20x60, needs 48 a side)" in lines
    assert "others 1 files are no images by their names" in lines
    assert lines[-1] == f"index at {tmp_path}/.ipt_fast_index.jsonl"


def test_every_refused_file_is_named_on_demand(tmp_path, capsys):
    write(tmp_path / "good.jpg")
    for number in range(5):
        (tmp_path / f"zero{number}.jpg").touch()
    assert main(["index", str(tmp_path), "--refused"]) == 0
    assert all(f"zero{number}.jpg" in capsys.readouterr().out for number in [4])


@pytest.mark.parametrize("name, message", [("nowhere", "does not exist"), ("", "no usable image")])
def test_wrong_folders_are_one_line_and_exit_code_2(tmp_path, capsys, name, message):
    assert main(["index", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(tmp_path) in error
    assert len(error.splitlines()) == 1
