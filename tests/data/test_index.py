import io
import json
import os
import tarfile
import warnings

import numpy as np
import pytest
from PIL import Image

from ipt_fast.data import NoImagesError, build_index, index, make_loader
from ipt_fast.data.index import INDEX_NAME
from tests.data.photo_files import jpeg_bytes, pixels, write_jpegs


@pytest.fixture
def folder(tmp_path):
    """One sound photo in it, so that the index has something to hold."""
    path = tmp_path / "photos"
    write_jpegs(path, 1)
    return path


def index_of(*paths, **options):
    return build_index(list(paths), progress=False, **options)


def entry(index, name):
    return next(entry for entry in index.entries if entry.path.endswith(name))


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


REFUSED = {
    "zero.jpg": (lambda: b"", "zero-byte: the file is empty"),
    "truncated.jpg": (lambda: jpeg_bytes(pixels())[:-900], "truncated: "),
    "truncated.png": (lambda: png(Image.fromarray(pixels()))[:-900], "truncated: "),
    "text.jpg": (lambda: b"this is a web page that says 404", "not an image: "),
    "header_only.jpg": (lambda: jpeg_bytes(pixels())[:60], ""),
    "tiny.jpg": (lambda: jpeg_bytes(pixels(40, 90)), "too small: 90x40, needs 48 a side"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_and_small_files_are_refused_with_the_reason(folder, name):
    make, reason = REFUSED[name]
    (folder / name).write_bytes(make())
    index = index_of(folder)
    assert len(index.usable) == 1
    assert entry(index, name).verdict == "refused"
    assert entry(index, name).reason.startswith(reason)
    assert [e.path for kind in index.refusals().values() for e in kind] == [str(folder / name)]


def test_corrupt_bytes_in_the_middle_are_refused(folder):
    pytest.importorskip("simplejpeg")
    data = bytearray(jpeg_bytes(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)))
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    (folder / "corrupt.jpg").write_bytes(data)
    assert entry(index_of(folder), "corrupt.jpg").reason.startswith("corrupt: ")


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg_bytes(pixels(), exif=exif)


def cmyk():
    out = io.BytesIO()
    Image.fromarray(pixels()).convert("CMYK").save(out, "JPEG")
    return out.getvalue()


SERVED = {
    "gray.jpg": (lambda: jpeg_bytes(pixels()[..., 0]), "gray"),
    "cmyk.jpg": (cmyk, "cmyk"),
    "deep.png": (lambda: png(Image.fromarray(np.full((60, 60), 40000, np.uint16))), "16-bit"),
    "alpha.png": (lambda: png(Image.fromarray(np.dstack([pixels(), pixels()[..., :1]]))), "alpha"),
    "rotated.jpg": (rotated, "exif-rotated"),
    "renamed.jpg": (lambda: png(Image.fromarray(pixels())), "renamed"),
}


@pytest.mark.parametrize("name", SERVED)
def test_unusual_files_are_served_and_counted(folder, name):
    make, note = SERVED[name]
    (folder / name).write_bytes(make())
    index = index_of(folder)
    assert entry(index, name).verdict == "ok"
    assert note in entry(index, name).notes
    assert index.notes()[note] == 1


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(folder):
    (folder / "tail.jpg").write_bytes(jpeg_bytes(pixels()) + bytes(500))
    assert entry(index_of(folder), "tail.jpg").verdict == "ok"


def test_a_folder_without_images_is_refused_by_name(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NoImagesError, match=f"no usable image under {empty} .it is empty"):
        index_of(empty)
    (empty / "notes.txt").write_text("no photo")
    (empty / "zero.jpg").touch()
    with pytest.raises(NoImagesError, match="1 zero-byte; 1 other files"):
        index_of(empty)


def test_one_empty_folder_of_several_is_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImagesError, match="empty"):
        index_of(folder, tmp_path / "empty")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        index_of(tmp_path / "nowhere")


def test_an_unreadable_folder_is_reported(folder, monkeypatch):
    # chmod does not keep the superuser out, so the system call is made to refuse.
    (folder / "locked").mkdir()
    real = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    index = index_of(folder)
    assert index.unreadable == [(str(folder / "locked"), "Permission denied")]
    assert len(index.usable) == 1


def test_an_unreadable_file_is_refused(folder):
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    assert entry(index_of(folder), "gone.jpg").reason == "unreadable: No such file or directory"


def test_links_in_a_circle_end(folder):
    (folder / "again").symlink_to(folder)
    assert len(index_of(folder).usable) == 1


def test_nested_classes_flat_folders_and_hidden_files(folder):
    write_jpegs(folder / "n01440764", 2)
    write_jpegs(folder / "a" / "b" / "c", 3)
    write_jpegs(folder / ".hidden", 1)
    (folder / "labels.txt").write_text("0")
    index = index_of(folder)
    assert len(index.usable) == 6
    assert index.others == 1
    assert [e.path for e in index.entries] == sorted(e.path for e in index.entries)


def test_several_folders_make_one_index(folder, tmp_path):
    write_jpegs(tmp_path / "more", 2)
    index = index_of(folder, tmp_path / "more")
    assert len(index.usable) == 3
    assert len(index.files) == 2
    assert len(index_of(folder, folder).usable) == 1


def test_tar_shards_are_read_in_place(folder, tmp_path):
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for number in range(2):
            data = jpeg_bytes(pixels(seed=number))
            member = tarfile.TarInfo(f"{number:04}.jpg")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    index = index_of(folder)
    names = ["photo000.jpg", "shard.tar::0000.jpg", "shard.tar::0001.jpg"]
    assert [os.path.basename(e.path) for e in index.usable] == names
    assert index.usable[1].offset == 512
    assert index_of(folder / "shard.tar").entries == index.entries[1:]


def test_a_damaged_shard_is_reported(folder):
    (folder / "bad.tar").write_bytes(b"no tar at all" * 100)
    assert index_of(folder).unreadable[0][1].startswith("damaged tar shard")


def test_a_second_run_reads_only_what_changed(folder):
    paths = write_jpegs(folder, 5)
    assert index_of(folder).checked == 5
    assert index_of(folder).checked == 0
    paths[2].write_bytes(jpeg_bytes(pixels(70, 70)))
    paths[3].unlink()
    os.utime(paths[4], ns=(1, 1))  # of the same size, and perhaps another photo
    index = index_of(folder)
    assert index.checked == 2
    assert entry(index, "photo002.jpg").width == 70
    assert len(index.entries) == 4
    again = index_of(folder)
    assert again.checked == 0 and again.entries == index.entries


def test_other_demands_check_again(folder):
    index_of(folder)
    with pytest.raises(NoImagesError, match="1 too small"):
        index_of(folder, min_size=90)


def test_the_index_moves_with_its_folder(folder, tmp_path):
    index_of(folder)
    moved = folder.rename(tmp_path / "moved")
    index = index_of(moved)
    assert index.checked == 0
    assert index.entries[0].path == str(moved / "photo000.jpg")


@pytest.mark.parametrize("damage", ["", "{", '{"format": "other"}\n', None])
def test_a_damaged_index_is_made_again(folder, damage):
    place = folder / INDEX_NAME
    good = index_of(folder)
    place.write_text(damage if damage is not None else place.read_text()[:-20])
    assert index_of(folder).entries == good.entries
    assert len(place.read_text().splitlines()) == 2


def test_the_index_is_json_lines_and_leaves_no_half_file(folder, monkeypatch):
    index_of(folder)
    header, line = (json.loads(text) for text in (folder / INDEX_NAME).read_text().splitlines())
    assert header["format"] == "ipt-fast-index/1"
    assert line["path"] == "photo000.jpg" and line["width"] == 100 and line["verdict"] == "ok"
    before = (folder / INDEX_NAME).read_bytes()
    write_jpegs(folder, 3)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        index_of(folder)
    assert (folder / INDEX_NAME).read_bytes() == before
    assert not list(folder.glob("*.tmp"))


def test_what_an_interrupted_run_has_checked_stays_known(folder, monkeypatch):
    paths = write_jpegs(folder, 6)
    check_image = index.check_image

    def interrupted(file, *rest):
        if file.path == str(paths[4]):
            raise KeyboardInterrupt
        return check_image(file, *rest)

    monkeypatch.setattr(index, "check_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_of(folder, workers=1)
    monkeypatch.undo()
    assert index_of(folder).checked == 2


def test_the_callers_warning_filters_stay(folder, monkeypatch):
    before = list(warnings.filters)
    loader = make_loader(index_of(folder), loader="torch", workers=0, batch_size=1)
    next(loader)
    loader.close()
    assert warnings.filters == before


def test_a_read_only_folder_puts_its_index_into_the_cache(folder, tmp_path, monkeypatch):
    real = os.replace

    def refusing(source, target):
        if str(target).startswith(str(folder)):
            raise PermissionError(30, "Read-only file system", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    index = index_of(folder)
    assert index.files[0].startswith(str(tmp_path / "cache"))
    assert index_of(folder).checked == 0


def test_an_index_file_of_choice_holds_all_folders(folder, tmp_path):
    write_jpegs(tmp_path / "more", 2)
    place = tmp_path / "elsewhere" / "index.jsonl"
    assert index_of(folder, tmp_path / "more", index_file=place).checked == 3
    assert index_of(folder, tmp_path / "more", index_file=place).checked == 0
    assert not (folder / INDEX_NAME).exists()


def test_workers_do_not_change_the_index(folder):
    write_jpegs(folder, 9)
    one = index_of(folder, workers=1)
    (folder / INDEX_NAME).unlink()
    assert index_of(folder, workers=4).entries == one.entries


def test_real_photos_are_all_usable(shared, tmp_path):
    index = index_of(shared / "data/imagenet-sample/train", index_file=tmp_path / "index.jsonl")
    assert len(index.usable) == 800
    assert index.notes()["gray"] >= 1 and index.notes()["exif-rotated"] >= 1


def test_checking_in_threads_leaves_warnings_alone(folder):
    """Pillow warns of odd metadata; hushing it per thread would hush all the others too."""
    for number in range(24):
        image = Image.fromarray(pixels(64, 64, number)).quantize()
        image.save(folder / f"palette{number}.png", transparency=bytes(range(200)))  # Pillow warns when it converts
    caught = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index_of(folder, workers=8)
        for _ in range(3):
            try:
                warnings.warn("heard", stacklevel=1)
            except UserWarning:
                caught.append(1)
    assert len(caught) == 3
