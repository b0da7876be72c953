import multiprocessing
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.data import build_index, make_loader
from tests.data.photo_files import DALI_MISSING, KINDS, jpeg_bytes, needs_dali, pixels, same, take, write_jpegs


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    """13 photos, one of them smaller than the SR crops, one CMYK, one 16-bit, one PNG."""
    write_jpegs(tmp_path / "photos", 9, 220, 240)
    (tmp_path / "photos" / "small.jpg").write_bytes(jpeg_bytes(pixels(50, 130)))
    Image.fromarray(pixels(230, 250, 20)).convert("CMYK").save(tmp_path / "photos" / "cmyk.jpg")
    Image.fromarray(np.arange(250 * 230, dtype=np.uint16).reshape(250, 230)).save(tmp_path / "photos" / "deep.png")
    Image.fromarray(pixels(230, 250, 21)).save(tmp_path / "photos" / "plain.png")
    return tmp_path / "photos"


def test_batches_hold_what_they_say(folder, opened, kind):
    loader = opened(folder, loader=kind)
    for step, batch in enumerate(take(loader, 8)):
        size = {"sr2": 104, "sr3": 156, "sr4": 208}.get(batch.task, 48)
        assert batch.gt.shape == (4, 3, size, size) and batch.gt.dtype == torch.uint8
        assert batch.gt.permute(0, 2, 3, 1).is_contiguous()
        assert batch.seeds.shape == (4,) and batch.seeds.dtype == torch.int64 and (batch.seeds >= 0).all()
        assert batch.step == step and batch.epoch == step // loader.batches_per_epoch
    assert loader.batches_per_epoch == 4  # 13 photos
    stats = loader.stats()
    assert stats["batches"] == 8 and stats["bad_files"] == 0
    if kind == "torch":  # decodes in this process, so that its share of the waiting is known
        assert 0.01 < stats["batches"] * stats["decode_ms"] / 1e3 / stats["wait_seconds"] <= 1
    else:
        assert stats["decode_ms"] is None


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_batches(folder, opened, workers):
    one, many = opened(folder), opened(folder, workers=workers)
    assert same(take(one, 9), take(many, 9))


@pytest.mark.parametrize("crops_per_image", [1, 3])
def test_both_loaders_give_the_same_crops(folder, opened, kind, crops_per_image):
    """Of JPEG, PNG, CMYK, 16 bits and small photos; with the torch loader in worker processes as the other one."""
    reference = opened(folder, crops_per_image=crops_per_image)
    other = opened(folder, loader=kind, workers=2, crops_per_image=crops_per_image)
    assert same(take(reference, 16), take(other, 16))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_hold_slices_of_one_global_batch(folder, opened, kind, world_size):
    whole = opened(folder, batch_size=8)
    ranks = [
        opened(folder, loader=kind, batch_size=8 // world_size, rank=rank, world_size=world_size, workers=1)
        for rank in range(world_size)
    ]
    for batch in take(whole, 5):
        parts = [next(rank) for rank in ranks]
        assert torch.equal(torch.cat([part.gt for part in parts]), batch.gt)
        assert torch.equal(torch.cat([part.seeds for part in parts]), batch.seeds)
        assert {part.task for part in parts} == {batch.task}


@pytest.mark.parametrize("position", [1, 3, 4, 6])
def test_resume_is_exact_in_an_epoch_and_across_its_end(folder, opened, kind, position):
    """Batches made ahead do not count: the state is that of the next batch to be yielded."""
    unbroken = take(opened(folder), 12)
    first = opened(folder, loader=kind, workers=2, prefetch=3)
    take(first, position)
    state = first.state_dict()
    take(first, 2)
    second = opened(folder, loader=kind, workers=1)
    second.load_state_dict(state)
    assert same(take(second, 12 - position), unbroken[position:])
    first.load_state_dict(state)
    assert same(take(first, 3), unbroken[position : position + 3])


def test_the_state_survives_a_weights_only_load(folder, opened, tmp_path):
    loader = opened(folder)
    take(loader, 4)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == loader.state_dict() and (state["step"], state["epoch"]) == (4, 1)


def test_a_closed_loader_goes_on_where_it_was(folder, opened, kind):
    loader = opened(folder, loader=kind, workers=1)
    start = take(loader, 2)
    loader.close()
    loader.close()
    assert same(start + take(loader, 2), take(opened(folder), 4))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"seed": 1}, "seed=0, this loader has 1"),
        ({"batch_size": 8}, "global_batch=4, this loader has 8"),
        ({"tasks": ("sr2",)}, "tasks="),
        ({"patch_size": 24}, "patch_size=48, this loader has 24"),
        ({"crops_per_image": 2}, "crops_per_image=1"),
    ],
)
def test_a_state_of_other_settings_is_refused(folder, opened, changed, message):
    state = opened(folder).state_dict()
    with pytest.raises(ValueError, match=message):
        opened(folder, **changed).load_state_dict(state)


def test_a_state_of_other_photos_warns_and_goes_on(folder, opened):
    loader = opened(folder)
    take(loader, 2)
    state = loader.state_dict()
    (folder / "photo003.jpg").unlink()
    changed = opened(folder)
    with pytest.warns(UserWarning, match="the photos have changed"):
        changed.load_state_dict(state)
    assert next(changed).step == 2


def damage(folder):
    """Have photos truncated, vanished, emptied and replaced by another size, all after the index was made."""
    (folder / "photo001.jpg").write_bytes((folder / "photo001.jpg").read_bytes()[:1500])
    (folder / "photo002.jpg").unlink()
    (folder / "photo003.jpg").write_bytes(b"")
    (folder / "photo004.jpg").write_bytes(jpeg_bytes(pixels(100, 100)))


@pytest.mark.filterwarnings("ignore:an unreadable photo")  # the reference's
@pytest.mark.parametrize("crops_per_image", [1, 2])
def test_unreadable_photos_cost_their_sample_alone(folder, opened, kind, crops_per_image):
    sound = take(opened(folder, crops_per_image=crops_per_image), 8)
    reference = opened(folder, crops_per_image=crops_per_image)
    loader = opened(folder, loader=kind, workers=2, crops_per_image=crops_per_image)
    damage(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = take(loader, 8)
    assert same(batches, take(reference, 8))
    stats = loader.stats()
    assert stats["bad_files"] == 4
    assert stats["bad_samples"] >= 4 * crops_per_image
    reasons = {os.path.basename(path): reason for path, reason in stats["bad_paths"].items()}
    assert reasons.pop("photo001.jpg").startswith("changed since it was indexed, now truncated: ")
    assert reasons == {
        "photo002.jpg": "No such file or directory",
        "photo003.jpg": "changed since it was indexed, now zero-byte: the file is empty",
        "photo004.jpg": "changed since it was indexed, now of another size; index again",
    }
    assert len([w for w in caught if "unreadable photo" in str(w.message)]) == 4
    # All other samples are those of the run with sound photos.
    differing = sum(int((a.gt != b.gt).flatten(1).any(1).sum()) for a, b in zip(batches, sound, strict=True))
    assert 0 < differing <= stats["bad_samples"]


@pytest.mark.filterwarnings("ignore:an unreadable photo")
def test_a_file_overwritten_in_place_is_checked_again(folder, opened, kind):
    """Its size is as it was, and a decoder that stops early would not mind."""
    loader = opened(folder, loader=kind, tasks=("derain",), batch_size=13)
    path = folder / "photo005.jpg"
    half = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:half] + bytes(path.stat().st_size - half))
    next(loader)
    (reason,) = loader.stats()["bad_paths"].values()
    assert reason.startswith("changed since it was indexed, now ")


@pytest.mark.filterwarnings("ignore:an unreadable photo")
@pytest.mark.parametrize("height, width", [(220, 100), (100, 240)])
def test_a_photo_that_decodes_to_another_size_is_replaced(folder, opened, height, width):
    """Of the same bytes and time as indexed, so that its pixels alone tell."""
    path = folder / "photo005.jpg"
    loader, status = opened(folder, tasks=("sr4",), batch_size=13), path.stat()
    other = jpeg_bytes(pixels(height, width))
    path.write_bytes(other + bytes(status.st_size - len(other)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    next(loader)
    assert loader.stats()["bad_paths"] == {str(path): "decodes to another size than it was indexed with; index again"}


def test_a_file_rewritten_as_it_was_is_still_good(folder, opened, kind):
    loader, reference = opened(folder, loader=kind, workers=1), take(opened(folder), 4)
    for path in folder.glob("*.jpg"):
        os.utime(path, ns=(1, 1))
    assert same(take(loader, 4), reference)
    assert loader.stats()["bad_files"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker by Linux's /proc")
def test_a_killed_worker_is_an_error(folder, opened):
    loader = opened(folder, workers=1)
    next(loader)
    (worker,) = (child for child in multiprocessing.active_children() if "DataLoader" not in child.name)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        take(loader, 50)


@pytest.mark.parametrize("name", KINDS)
def test_python_ends_without_close(folder, name):
    """Workers ignore SIGTERM, so they have to be told; while an exception's traceback still refers to the loader."""
    code = f"""
from ipt_fast.data import build_index, make_loader
if __name__ == "__main__":
    index = build_index([{str(folder)!r}], progress=False)
    loader = make_loader(index, loader={name!r}, device="cpu", batch_size=4, workers=2, prefetch=1)
    next(loader)
    raise ValueError("the end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.strip().endswith("ValueError: the end")


@pytest.mark.parametrize("workers", [0, 1])
def test_all_photos_gone_is_an_error(folder, opened, kind, workers):
    loader = opened(folder, loader=kind, workers=workers)
    for path in folder.glob("*.*"):
        path.unlink()
    with pytest.raises(RuntimeError, match="are the data still there"):
        take(loader, 2)


@pytest.mark.filterwarnings("ignore:an unreadable photo")
@needs_dali
def test_a_photo_that_dali_cannot_decode_is_decoded_without_it(folder, opened):
    """Same size and time as indexed, so only the decoder notices."""
    path = folder / "photo001.jpg"
    loader, reference = opened(folder, loader="dali"), opened(folder)
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.warns(UserWarning, match="DALI could not decode batch"):
        batches = take(loader, 6)
    assert same(batches, take(reference, 6))
    assert loader.stats()["bad_files"] == 1


@needs_dali
@pytest.mark.parametrize("crops_per_image", [1, 3])
def test_dali_takes_a_photo_that_comes_twice_in_a_row(tmp_path, opened, crops_per_image):
    write_jpegs(tmp_path, 2, 220, 240)  # a batch of 12 has the same photo next to itself
    options = {"batch_size": 12, "crops_per_image": crops_per_image}
    loader, reference = opened(tmp_path, loader="dali", **options), opened(tmp_path, **options)
    assert same(take(loader, 4), take(reference, 4))


@needs_dali
def test_dali_batches_stay_valid_after_later_ones(folder, opened):
    """They are handed on without a copy."""
    loader = opened(folder, loader="dali")
    kept = [(batch.gt, batch.gt.clone()) for batch in take(loader, 12)]
    assert all(torch.equal(crops, copy) for crops, copy in kept)


@needs_dali
def test_dali_decodes_real_photos_as_the_torch_loader_does(shared, tmp_path):
    index = build_index([shared / "data/imagenet-sample/train"], index_file=tmp_path / "index.jsonl", progress=False)
    loaders = [make_loader(index, loader=name, batch_size=80, workers=1) for name in ("torch", "dali")]
    left, right = (take(loader, 10) for loader in loaders)
    for loader in loaders:
        loader.close()
    assert same(left, right)


def test_auto_says_what_it_chose(folder, opened):
    about = opened(folder, loader="auto", workers=1).description
    assert about.startswith("torch loader, 1 workers" if DALI_MISSING else "DALI loader, ")
    assert DALI_MISSING is None or DALI_MISSING in about


def test_auto_decodes_in_this_process_where_that_is_asked_for(folder, opened, monkeypatch):
    monkeypatch.setattr("ipt_fast.data.factory.unavailable_reason", lambda: None)
    said = opened(folder, loader="auto", workers=0).description
    assert said.startswith("torch loader, 0 workers") and said.endswith(
        "workers=0 decodes in this process, which DALI does not"
    )


@pytest.mark.skipif(DALI_MISSING is None, reason="DALI is installed")
def test_dali_on_demand_says_what_is_missing(folder, opened):
    with pytest.raises(ModuleNotFoundError, match=r'loader="dali" cannot serve: .*loader="torch"'):
        opened(folder, loader="dali")


def test_a_fraction_of_the_data_is_fixed(folder, opened):
    def photos(**options):
        return opened(folder, **options).state_dict()["photos"]

    first, second = (photos(data_fraction=0.4, seed=seed) for seed in (0, 1))
    assert first == second != photos()
    assert opened(folder, data_fraction=0.4, batch_size=1).batches_per_epoch == 5


def test_sets_smaller_than_a_batch_train(folder, opened, kind):
    loader = opened(folder, loader=kind, batch_size=32, tasks=("sr4", "derain"))
    assert loader.batches_per_epoch == 1
    batches = take(loader, 3)
    assert [batch.epoch for batch in batches] == [0, 1, 2]
    assert all(len(batch.gt) == 32 for batch in batches)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loader": "fast"}, '"auto", "dali" or "torch"'),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank has to lie in 0..1"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"workers": -1}, "workers is -1; it has to be 0 or more"),
        ({"data_fraction": 2.0}, "data_fraction is 2.0"),
    ],
)
def test_wrong_settings_are_named(folder, opened, options, message):
    with pytest.raises(ValueError, match=message):
        opened(folder, **options)
