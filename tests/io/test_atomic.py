"""A file is written whole or not at all."""

import pytest
from PIL import Image

from ipt_fast.io.atomic import atomic_path, atomic_write
from ipt_fast.io.write import write_image


@pytest.mark.parametrize("mode, content", [("w", "größer\n"), ("wb", b"\0\1")])
def test_a_file_appears_when_it_is_complete(tmp_path, mode, content):
    path = tmp_path / "a.bin"
    with atomic_write(path, mode) as file:
        file.write(content)
        assert not path.exists()
    assert (path.read_text(encoding="utf-8") if mode == "w" else path.read_bytes()) == content
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("precious")

    def stopped():
        with atomic_write(path, "w") as file:
            file.write("half")
            raise error("stop")

    with pytest.raises(error):
        stopped()
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_full_disk_names_the_file(tmp_path, mode, small_files):
    path = tmp_path / "a.bin"
    data = "x" * 50_000 if mode == "w" else b"x" * 50_000
    with small_files(10_000), pytest.raises(OSError, match=str(path)), atomic_write(path, mode) as file:
        file.write(data)
    assert not list(tmp_path.iterdir())


def test_a_writer_that_hides_a_full_disk_does_not(tmp_path, small_files):
    """As torch.save does, which turns it into an error about its own position in the file."""

    def hide():
        with atomic_write(tmp_path / "a") as file, small_files(10):
            try:
                file.write(b"x" * 11)
            except OSError:
                raise RuntimeError("unexpected pos") from None

    with pytest.raises(OSError, match="File too large"):
        hide()


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.txt"), atomic_write(tmp_path / "nowhere/a.txt", "w"):
        pass


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("precious")
    picture = Image.new("RGB", (3, 3))
    with pytest.raises(FileExistsError, match=r"a\.png is already there"):
        write_image(picture, path, force=False)
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1
    write_image(picture, path)
    assert Image.open(path).size == (3, 3)


def test_the_temporary_file_keeps_the_suffix_and_is_hidden(tmp_path):
    with atomic_path(tmp_path / ("n" * 200 + ".onnx")) as temporary:
        assert temporary.suffix == ".onnx" and temporary.name.startswith(".") and temporary.parent == tmp_path
        temporary.touch()
