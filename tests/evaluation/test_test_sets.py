"""Test sets on disk: every layout is found, and nothing that does not belong together is scored."""

import pytest
import torch

from ipt_fast.evaluation.test_sets import TestSetError, find_set, likeness, read_pair
from ipt_fast.tasks import get_task
from tests.evaluation.scene_files import write

LAYOUTS = {  # clean file, degraded file, task
    "EDSR and IPT": ("HR/{0}.png", "LR_bicubic/X2/{0}x2.png", "sr2"),
    "EDSR, scale 3": ("HR/{0}.png", "LR_bicubic/X3/{0}x3.png", "sr3"),
    "SwinIR": ("HR/{0}_HR.png", "LR_bicubic/X4/{0}x4.png", "sr4"),
    "BasicSR": ("GTmod12/{0}.png", "LRbicx4/{0}.png", "sr4"),
    "BasicSR deraining": ("GT/{0}.png", "LQ/{0}.png", "derain"),
    "Rain100L": ("norain/norain-{0}.png", "rain/rain-{0}.png", "derain"),
    "IPT deraining, one folder": ("norain-{0}.png", "rain-{0}.png", "derain"),
    "input and target": ("target/{0}.jpg", "input/{0}.png", "derain"),
    "GoPro": ("sharp/{0}.png", "blur/{0}.png", "deblur"),
    "noisy photos": ("clean/{0}.png", "noisy/{0}.png", "denoise30"),
}


@pytest.mark.parametrize("clean, degraded, task", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, clean, degraded, task):
    task = get_task(task)
    for seed, name in enumerate(("001", "002", "010")):
        write(tmp_path / clean.format(name), seed)
        write(tmp_path / degraded.format(name), seed, (48 // task.scale, 36 // task.scale))
    found = find_set(tmp_path, task)
    assert found.name == tmp_path.name and len(found.pairs) == 3
    for pair in found.pairs:
        high, low = read_pair(pair, task)
        assert high.shape == (3, 36, 48) and low.shape == (3, 36 // task.scale, 48 // task.scale)


@pytest.mark.parametrize("folder", [".", "HR", "GT", "original_png"])
def test_clean_images_alone_serve_what_can_be_made(tmp_path, folder):
    for seed in range(2):
        write(tmp_path / folder / f"{seed}.png", seed, (49, 37))
    for name in ("sr2", "denoise10"):
        found = find_set(tmp_path, get_task(name))
        assert [pair.name for pair in found.pairs] == ["0", "1"] and "degraded here" in found.layout
        high, low = read_pair(found.pairs[0], get_task(name))
        assert low is None and high.shape == ((3, 36, 48) if name == "sr2" else (3, 37, 49))
    with pytest.raises(TestSetError, match="derain needs pairs: a folder rain"):
        find_set(tmp_path, get_task("derain"))


def test_low_resolution_of_another_scale_is_not_taken(tmp_path):
    write(tmp_path / "HR/a.png")
    write(tmp_path / "LR_bicubic/X2/ax2.png", size=(24, 18))
    assert find_set(tmp_path, get_task("sr3")).pairs[0].degraded is None


def test_images_without_a_partner_are_refused_with_both_names(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"norain/norain-{name}.png")
    write(tmp_path / "rain/rain-a.png")
    with pytest.raises(TestSetError, match=r"norain-b\.png has no partner in .*rain, which holds rain-a\.png"):
        find_set(tmp_path, get_task("derain"))
    write(tmp_path / "rain/rain-b.png")
    write(tmp_path / "rain/rain-c.png")
    with pytest.raises(TestSetError, match=r"rain-c\.png has no partner in .*norain"):
        find_set(tmp_path, get_task("derain"))
    write(tmp_path / "norain/norain-c.png")
    write(tmp_path / "rain/c.png")
    with pytest.raises(TestSetError, match=r"c\.png and .*rain-c\.png would both be the partner"):
        find_set(tmp_path, get_task("derain"))


@pytest.mark.parametrize("size", [(23, 18), (48, 36), (12, 9)])
def test_sizes_that_do_not_fit_are_refused_with_both_names(tmp_path, size):
    write(tmp_path / "HR/a.png")
    write(tmp_path / "LR_bicubic/X2/ax2.png", size=size)
    pair = find_set(tmp_path, get_task("sr2")).pairs[0]
    with pytest.raises(TestSetError, match=rf"HR/a\.png \(48x36\) and .*ax2\.png \({size[0]}x{size[1]}\)"):
        read_pair(pair, get_task("sr2"))


@pytest.mark.parametrize("task, folders", [("sr2", ("HR", "LR_bicubic/X2")), ("derain", ("norain", "rain"))])
def test_other_scenes_under_the_same_name_are_refused(tmp_path, task, folders):
    write(tmp_path / folders[0] / "a.png", 0)
    side = 2 if task == "sr2" else 1
    write(tmp_path / folders[1] / "a.png", 1, (48 // side, 36 // side))
    pair = find_set(tmp_path, get_task(task)).pairs[0]
    with pytest.raises(TestSetError, match=r"a\.png and .*a\.png show different scenes"):
        read_pair(pair, get_task(task))


def test_an_odd_clean_image_is_cut_to_its_low_resolution(tmp_path):
    write(tmp_path / "HR/a.png", size=(49, 37))
    for size in ((24, 18), (25, 19)):  # rounded down, and up as MATLAB does
        write(tmp_path / "LR_bicubic/X2/ax2.png", size=size)
        clean, low = read_pair(find_set(tmp_path, get_task("sr2")).pairs[0], get_task("sr2"))
        assert clean.shape == (3, 36, 48) and low.shape == (3, 18, 24)


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_set(tmp_path / "nowhere", get_task("sr2"))
    write(tmp_path / "Set5/HR/a.png")
    with pytest.raises(TestSetError, match="no images of a test set for sr2; it has the folders Set5"):
        find_set(tmp_path, get_task("sr2"))
    write(tmp_path / "rain/a.png")
    with pytest.raises(TestSetError, match="has rain but no folder of clean images"):
        find_set(tmp_path, get_task("derain"))
    write(tmp_path / "tiny/a.png", size=(2, 2))
    with pytest.raises(TestSetError, match="2x2 is too small for sr3"):
        read_pair(find_set(tmp_path / "tiny", get_task("sr3")).pairs[0], get_task("sr3"))


def test_a_damaged_image_is_named(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"a\.png: not an image"):
        read_pair(find_set(tmp_path, get_task("sr2")).pairs[0], get_task("sr2"))


def test_likeness_of_flat_images_says_nothing():
    flat = torch.full((3, 30, 30), 90, dtype=torch.uint8)
    assert likeness(flat, flat + 20) == 1.0


@pytest.mark.parametrize("task", ["sr2", "sr3", "sr4"])
def test_set5_is_one_whole_set(shared, task):
    found = find_set(shared / "data/Set5", get_task(task))
    assert [pair.name for pair in found.pairs] == ["baby", "bird", "butterfly", "head", "woman"]
    assert all(read_pair(pair, get_task(task))[1] is not None for pair in found.pairs)


def test_rain100l_is_one_whole_set_and_swapped_pairs_are_refused(shared):
    task = get_task("derain")
    pairs = find_set(shared / "data/Rain100L", task).pairs
    assert len(pairs) == 100 and pairs[0].clean.name == "norain-001.png" and pairs[0].degraded.name == "rain-001.png"
    images = [read_pair(pair, task) for pair in pairs[:24]]
    wrong = [likeness(a, b) for i, (a, _) in enumerate(images) for j, (_, b) in enumerate(images) if i != j]
    assert sum(alike >= 0.6 for alike in wrong) < 0.1 * len(wrong)  # the set has some scenes twice
