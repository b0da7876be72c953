"""Finding images below a path."""

import os
import tarfile

import pytest

from ipt_fast.io.images import SUFFIXES
from ipt_fast.io.scan import find_images, image_files, read_bytes


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(scan, root):
    return [os.path.relpath(image.path, root) for image in scan.images]


def test_images_of_all_depths_by_name_and_others_counted(tmp_path):
    touch(tmp_path, "b.PNG", "a.jpg", "deep/er/c.jfif", "notes.txt", "png")
    scan = find_images(tmp_path)
    assert names(scan, tmp_path) == ["a.jpg", "b.PNG", "deep/er/c.jfif"] and scan.others == 2
    assert [p.name for p in image_files(tmp_path)] == ["a.jpg", "b.PNG"]
    assert len(image_files(tmp_path, recursive=True)) == 3


def test_hidden_files_and_folders_are_never_taken(tmp_path):
    touch(tmp_path, "._a.jpg", ".hidden/b.jpg", "a.jpg")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("a.jpg", "._a.jpg"):
            tar.add(tmp_path / name, f"x/{name}")
    assert names(find_images(tmp_path), tmp_path) == ["a.jpg", "s.tar::x/a.jpg"]


def test_members_of_shards_are_read_in_place(tmp_path):
    touch(tmp_path, "one.png", "two.png")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("one.png", "two.png"):
            tar.add(tmp_path / name, name)
    shard = find_images(tmp_path / "s.tar")
    assert [read_bytes(image) for image in shard.images] == [b"one.png", b"two.png"]
    without = find_images(tmp_path, shards=False)
    assert names(without, tmp_path) == ["one.png", "two.png"] and without.others == 1
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:520])
    with pytest.raises(OSError, match=r"two\.png ends before its 7 bytes do"):
        read_bytes(shard.images[1])


def test_links_that_lead_back_to_themselves_or_nowhere(tmp_path):
    touch(tmp_path, "a/good.png")
    os.symlink("loop.jpg", tmp_path / "a/loop.jpg")
    os.symlink("gone.jpg", tmp_path / "a/lost.jpg")
    os.symlink(tmp_path, tmp_path / "a/back")
    os.symlink("ring", tmp_path / "a/ring")
    scan = find_images(tmp_path)
    assert names(scan, tmp_path) == ["a/good.png", "a/loop.jpg", "a/lost.jpg"]
    for image in scan.images[1:]:
        with pytest.raises(OSError):  # noqa: PT011
            read_bytes(image)


def test_other_kinds_are_counted_and_a_pipe_is_no_image(tmp_path):
    touch(tmp_path, "a.heic", "b.HEIC", "c.txt", "d", "e.png")
    os.mkfifo(tmp_path / "f.jpg")
    scan = find_images(tmp_path)
    assert names(scan, tmp_path) == ["e.png"]
    assert dict(scan.kinds) == {".heic": 2, ".txt": 1, "": 1, ".jpg": 1} and scan.others == 5


def test_the_usual_kinds_are_images():
    assert {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"} <= set(SUFFIXES)
