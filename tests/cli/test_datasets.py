"""``ipt-fast datasets``: the sets are listed, and a folder is compared with what was published."""

import pytest
from PIL import Image

from ipt_fast.cli import main


@pytest.fixture
def set5(tmp_path):
    (tmp_path / "Set5/HR").mkdir(parents=True)
    for i, size in enumerate([(512, 512), (288, 288), (256, 256), (280, 280), (228, 344)]):
        Image.new("RGB", size).save(tmp_path / f"Set5/HR/{i}.png")
    return tmp_path / "Set5"


def test_all_sets_are_listed_with_their_sources(capsys):
    assert main(["datasets"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("ImageNet", "1,281,167", "Set5", "Rain100L", "https://"))


def test_complete(set5, capsys):
    assert main(["datasets", "set5", "--check", str(set5)]) == 0
    assert capsys.readouterr().out == f"{set5}: Set5, complete\n"


def test_missing_image_and_wrong_size_are_named(set5, capsys):
    (set5 / "HR/4.png").unlink()
    Image.new("RGB", (100, 90)).save(set5 / "HR/0.png")
    assert main(["datasets", "Set5", "--check", str(set5)]) == 1
    said = capsys.readouterr().out
    assert "4 images, Set5 has 5: 1 missing" in said and "1 of the images looked at are 100x90" in said


def test_refusals(assert_refused, tmp_path):
    assert_refused("datasets", ["Set6"], "Set6 is not known; known are ImageNet")
    assert_refused("datasets", ["--check", tmp_path], "--check needs to know which set")
    assert_refused("datasets", ["Set5", "--check", tmp_path / "none"], "no such folder; Set5 comes from https://")


@pytest.mark.parametrize("name", ["Set5", "CBSD68", "Kodak24", "Rain100L"])
def test_the_real_sets(shared, name, capsys):
    assert main(["datasets", name, "--check", str(shared / "data" / name)]) == 0
