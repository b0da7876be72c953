"""Tar shards: what lies in them, the index and checksums beside them, and training from them with both loaders."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ipt_fast.cli import main
from ipt_fast.data import build_index, shards
from ipt_fast.data.index import INDEX_NAME
from ipt_fast.data.shards import CHECKSUMS, write_shards
from tests.data.photo_files import KINDS, jpeg_bytes, pixels, same, take, write_jpegs


@pytest.fixture
def photos(tmp_path):
    """17 photos in classes, of several kinds, and one that is refused."""
    folder = tmp_path / "photos"
    write_jpegs(folder / "n01440764", 8, 220, 240)
    write_jpegs(folder / "n01530575", 5, 220, 240)  # the same names
    (folder / "small.jpg").write_bytes(jpeg_bytes(pixels(50, 130)))
    Image.fromarray(pixels(230, 250, 20)).convert("CMYK").save(folder / "a.b c.JPEG", "JPEG")
    Image.fromarray(np.arange(250 * 230, dtype=np.uint16).reshape(250, 230)).save(folder / "deep.png")
    Image.fromarray(pixels(230, 250, 21)).save(folder / "renamed.jpg", "PNG")
    (folder / "zero.jpg").touch()
    return folder


def index_of(*folders):
    return build_index(folders, progress=False)


@pytest.fixture
def packed(photos, tmp_path):
    """About six photos a shard."""
    write_shards(index_of(photos), tmp_path / "out", roots=[photos], shard_bytes=40_000, progress=False)
    return tmp_path / "out"


def members(folder):
    """name -> bytes, in the order of the shards."""
    found = {}
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as shard:
            for member in shard:
                assert member.name not in found
                found[member.name] = shard.extractfile(member).read()
    return found


def test_shards_hold_every_usable_photo_byte_for_byte(photos, packed):
    names = members(packed)
    assert len(names) == 17 and len(list(packed.glob("*.tar"))) > 2
    assert names["n01440764/photo003.jpg"] == (photos / "n01440764/photo003.jpg").read_bytes()
    assert names["n01530575/photo003.jpg"] == (photos / "n01530575/photo003.jpg").read_bytes()
    assert names["a_b_c.jpg"] == (photos / "a.b c.JPEG").read_bytes()
    assert names["renamed.png"] == (photos / "renamed.jpg").read_bytes()
    assert sorted(names.values()) == sorted(p.read_bytes() for p in photos.rglob("*.*") if p.name[0] not in "z.")


def test_names_are_keys_and_classes_are_mixed(packed):
    names = list(members(packed))
    assert all(re.fullmatch(r"([^.]+/)?[^./]+\.[a-z]+", name) for name in names)
    assert names != sorted(names)


def test_shards_end_at_their_size(packed):
    for file in sorted(packed.glob("*.tar"))[:-1]:
        with tarfile.open(file) as shard:
            last = shard.getmembers()[-1]
        assert last.offset < 40_000 <= last.offset_data + last.size + 511


def test_checksums_are_those_of_the_shards(packed):
    lines = (packed / CHECKSUMS).read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == sorted(file.name for file in packed.glob("*.tar"))
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((packed / name).read_bytes()).hexdigest() == digest


def test_the_same_photos_give_the_same_shards(photos, packed, tmp_path):
    for path in photos.rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    again = tmp_path / "again"
    write_shards(index_of(photos), again, roots=[photos], shard_bytes=40_000, progress=False)
    assert (again / CHECKSUMS).read_text() == (packed / CHECKSUMS).read_text()


def test_the_index_beside_them_is_what_checking_them_finds(packed):
    known = index_of(packed)
    assert known.checked == 0 and len(known.usable) == 17
    (packed / INDEX_NAME).unlink()
    fresh = index_of(packed)
    assert fresh.checked == 17 and fresh.entries == known.entries


def test_the_index_may_be_read_by_others(packed):
    assert (packed / INDEX_NAME).stat().st_mode & 0o044 == 0o044


def test_shards_move_with_their_index(packed, tmp_path):
    moved = packed.rename(tmp_path / "moved")
    assert index_of(moved).checked == 0


def test_several_folders_and_equal_names(tmp_path):
    for name in ("one", "two"):
        write_jpegs(tmp_path / name, 2)
    roots = [tmp_path / "one", tmp_path / "two"]
    write_shards(index_of(*roots), tmp_path / "out", roots=roots, progress=False)
    assert set(members(tmp_path / "out")) == {"photo000.jpg", "photo000-2.jpg", "photo001.jpg", "photo001-2.jpg"}


def test_shards_of_shards(packed, tmp_path):
    write_shards(index_of(packed), tmp_path / "again", roots=[packed], progress=False)
    assert sorted(members(packed).values()) == sorted(members(tmp_path / "again").values())


def test_a_photo_gone_since_the_index_is_left_out_and_told(photos, tmp_path):
    index = index_of(photos)
    (photos / "small.jpg").unlink()
    (photos / "deep.png").write_bytes((photos / "deep.png").read_bytes()[:500])
    done = write_shards(index, tmp_path / "out", roots=[photos], progress=False)
    assert done.photos == 15 == len(members(tmp_path / "out"))
    told = {os.path.basename(path): reason for path, reason in done.skipped}
    assert told["small.jpg"] == "No such file or directory" and "now truncated" in told["deep.png"]


def test_all_photos_gone_is_an_error_and_leaves_nothing(photos, tmp_path):
    index = index_of(photos)
    for path in photos.rglob("*.*"):
        path.unlink()
    with pytest.raises(ValueError, match="none of the 17 photos can be read any more, the first: No such file"):
        write_shards(index, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("held", ["shard-000000.tar", CHECKSUMS, INDEX_NAME])
def test_nothing_is_overwritten(photos, tmp_path, held):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / held).write_text("kept")
    with pytest.raises(FileExistsError, match=f"out already holds {re.escape(held)}; give a new folder"):
        write_shards(index_of(photos), tmp_path / "out", progress=False)
    assert (tmp_path / "out" / held).read_text() == "kept"


def test_a_full_disk_leaves_nothing(photos, tmp_path, small_files):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("kept")
    index = index_of(photos)
    for size in (10_000, 21_000):  # in the middle of a shard, of the second one
        with small_files(size), pytest.raises(OSError, match="File too large"):
            write_shards(index, tmp_path / "out", shard_bytes=20_000, progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_disk_too_small_is_told_before_the_work(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"the shards need 0\.\d GB and .*out has room for 0\.0 GB"):
        write_shards(index_of(photos), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_shards_among_their_photos_are_refused(photos):
    with pytest.raises(ValueError, match="whose index would hold each photo twice; choose another place"):
        write_shards(index_of(photos), photos / "shards", roots=[photos], progress=False)


def test_a_shard_needs_a_size(photos, tmp_path):
    with pytest.raises(ValueError, match="shard_bytes is 0; it has to be at least 1"):
        write_shards(index_of(photos), tmp_path / "out", shard_bytes=0, progress=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("crops_per_image", [1, 3])
def test_both_loaders_read_shards(packed, tmp_path, opened, kind, crops_per_image):
    """The same crops as from the unpacked members."""
    unpacked = tmp_path / "unpacked"
    for file in sorted(packed.glob("*.tar")):
        with tarfile.open(file) as shard:
            shard.extractall(unpacked / file.name, filter="data")
    # Folders named like the shards keep the photos in the same order.
    expected = opened(unpacked, crops_per_image=crops_per_image)
    loader = opened(packed, loader=kind, workers=2, crops_per_image=crops_per_image)
    assert same(take(loader, 12), take(expected, 12))
    assert loader.stats()["bad_samples"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_training_from_shards_resumes_exactly(packed, opened, kind):
    unbroken = take(opened(packed), 10)
    first = opened(packed, loader=kind, workers=2)
    take(first, 3)
    second = opened(packed, loader=kind, workers=1)
    second.load_state_dict(first.state_dict())
    assert same(take(second, 7), unbroken[3:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:an unreadable photo")
def test_unreadable_members_cost_their_sample_alone(packed, opened, kind):
    """The last shard is cut in its middle after it was indexed."""
    loader, reference = opened(packed, loader=kind, workers=1), opened(packed)
    last = sorted(packed.glob("*.tar"))[-1]
    os.truncate(last, last.stat().st_size // 2)
    batches = take(loader, 6)
    assert same(batches, take(reference, 6))
    bad = loader.stats()["bad_paths"]
    assert bad and all(path.startswith(f"{last}::") for path in bad)
    assert all("ends before" in reason or "changed since it was indexed" in reason for reason in bad.values())


def test_the_command_packs_and_reports(photos, tmp_path, capsys):
    assert main(["shard", str(photos), str(tmp_path / "out"), "--shard-mb", "0.04"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"packed +17 photos", text) and "1 zero-byte" in text and "zero.jpg" in text
    assert "sha256sum -c SHA256SUMS" in text and f"--data {tmp_path / 'out'}" in text
    assert len(members(tmp_path / "out")) == 17


@pytest.mark.parametrize("arguments, message", [(["nowhere", "out"], "nowhere does not exist"), (["", "."], "already")])
def test_the_command_says_what_is_wrong(photos, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shard-000000.tar").touch()
    data, out = arguments
    assert main(["shard", data or str(photos), out]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="needs sha256sum")
def test_the_checksums_are_in_the_form_of_sha256sum(packed):
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", CHECKSUMS], cwd=packed, check=True)
