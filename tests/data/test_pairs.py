"""Training on pairs: partners by name, crops at the same place of both photos, order, resumption, refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.data import NoImagesError, build_index, make_loader, make_pair_loader
from ipt_fast.io.pairs import PairError

# A photo whose pixels say where they are: red the row, green the column, blue the photo.
HEIGHT, WIDTH = 40, 56
SETTINGS = {"batch_size": 2, "patch_size": 12, "workers": 0, "loader": "torch"}


def write_pair(root, number, scale=1, names=("GT/{}.png", "LQ/{}.png"), size=(WIDTH, HEIGHT)):
    rows, columns = np.mgrid[: size[1], : size[0]]
    degraded = np.stack([rows, columns, np.full_like(rows, number)], -1).astype(np.uint8)
    clean = degraded.repeat(scale, 0).repeat(scale, 1) + np.uint8(100)
    for name, pixels in zip(names, (clean, degraded), strict=True):
        path = root / name.format(f"{number:03}")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def loader_of(root, task="derain", batch_size=6, **settings):
    folders = settings.pop("folders", ("GT", "LQ"))
    defaults = {"patch_size": 12, "workers": 0, "progress": False}
    return make_pair_loader(root / folders[0], root / folders[1], task, batch_size=batch_size, **(defaults | settings))


@pytest.mark.parametrize("task, scale", [("derain", 1), ("deblur", 1), ("denoise70", 1), ("sr2", 2), ("sr3", 3)])
def test_both_crops_come_from_the_same_place(tmp_path, task, scale):
    for number in range(5):
        write_pair(tmp_path, number, scale)
    places = set()
    loader = loader_of(tmp_path, task)
    for _ in range(4):
        batch = next(loader)
        assert batch.task == task and batch.lq.shape == (6, 3, 12, 12) and batch.lq.dtype == torch.uint8
        assert batch.gt.shape == (6, 3, 12 * scale, 12 * scale)
        enlarged = batch.lq.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        assert torch.equal(batch.gt, enlarged + 100)
        assert torch.equal(batch.lq[:, 0, :, 0].long().diff(dim=1), torch.ones(6, 11, dtype=torch.long))
        places |= {tuple(x[:, 0, 0].tolist()) for x in batch.lq}
    assert len({place[2] for place in places}) == 5 and len(places) > 15


def test_ranks_share_the_batch_of_one_process(tmp_path):
    for number in range(4):
        write_pair(tmp_path, number)
    whole = next(loader_of(tmp_path, batch_size=6, seed=3))
    parts = [next(loader_of(tmp_path, batch_size=3, seed=3, rank=rank, world_size=2)) for rank in (0, 1)]
    together = torch.cat([part.lq for part in parts])
    assert sorted(x.flatten().tolist() for x in together) == sorted(x.flatten().tolist() for x in whole.lq)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_in_the_middle_of_an_epoch(tmp_path, workers):
    for number in range(7):
        write_pair(tmp_path, number)
    loader = loader_of(tmp_path, batch_size=2, workers=workers)
    for _ in range(3):
        next(loader)
    state, wanted = loader.state_dict(), [next(loader) for _ in range(3)]
    other = loader_of(tmp_path, batch_size=2, workers=workers)
    other.load_state_dict(state)
    for batch in wanted:
        again = next(other)
        assert torch.equal(again.lq, batch.lq) and torch.equal(again.gt, batch.gt)
        assert (again.epoch, again.step) == (batch.epoch, batch.step)
    loader.close()
    other.close()


def test_states_that_call_any_pairs_deblur_are_resumed(tmp_path):
    """Earlier versions did; another task, or unpaired photos, are refused."""
    for number in range(5):
        write_pair(tmp_path, number)
    loader, unbroken = loader_of(tmp_path, batch_size=2), loader_of(tmp_path, batch_size=2)
    state = {**loader.state_dict(), "tasks": ["deblur"], "step": 4}
    loader.load_state_dict(state)
    for _ in range(4):
        next(unbroken)
    again, wanted = next(loader), next(unbroken)
    assert torch.equal(again.lq, wanted.lq) and again.step == 4 and again.task == "derain"
    with pytest.raises(ValueError, match="tasks="):
        loader.load_state_dict({**state, "tasks": ["sr2"]})
    unpaired = make_loader(build_index([tmp_path / "GT"], min_size=12, progress=False), tasks=("derain",), **SETTINGS)
    with pytest.raises(ValueError, match=r"tasks=\['deblur'\], this loader has \['derain'\]"):
        unpaired.load_state_dict({**state, "photos": unpaired.state_dict()["photos"]})


@pytest.mark.parametrize(
    "settings, message",
    [({"batch_size": 0}, "batch_size is 0"), ({"rank": 1}, "rank has to lie"), ({"prefetch": 0}, "prefetch is 0")],
)
def test_wrong_settings_are_named(tmp_path, settings, message):
    write_pair(tmp_path, 0)
    with pytest.raises(ValueError, match=message):
        loader_of(tmp_path, **settings)


def test_partners_by_their_usual_names(tmp_path):
    for number in range(3):
        write_pair(tmp_path, number, names=("norain/norain-{}.png", "rain/rain-{}.png"))
    batch = next(loader_of(tmp_path, folders=("norain", "rain")))
    assert torch.equal(batch.gt, batch.lq + 100)


def test_photos_without_a_partner_are_refused_with_their_names(tmp_path):
    for number in range(3):
        write_pair(tmp_path, number)
    (tmp_path / "LQ/002.png").rename(tmp_path / "LQ/other.png")
    with pytest.raises(
        PairError, match=r"GT.002\.png has no partner in .*LQ, which holds 000\.png, 001\.png, other\.png"
    ):
        loader_of(tmp_path)


def test_scenes_in_folders(tmp_path):
    """REDS and GoPro: the same numbers in each scene."""
    for scene in ("000", "001"):
        for number in range(2):
            write_pair(tmp_path, number + 7 * int(scene), names=(f"GT/{scene}/a{{}}.png", f"LQ/{scene}/a{{}}.png"))
    batch = next(loader_of(tmp_path))
    assert torch.equal(batch.gt, batch.lq + 100)


def test_scenes_with_both_sides_in_one_folder(tmp_path):
    """GoPro as it is downloaded."""
    for scene in ("GOPR0372", "GOPR0374"):
        for number in range(2):
            write_pair(tmp_path, number, names=(f"GT/{scene}/sharp/{{}}.png", f"GT/{scene}/blur/{{}}.png"))
            write_pair(
                tmp_path, number + 9, names=(f"GT/{scene}/blur_gamma/{{}}.png", f"GT/{scene}/blur_gamma/{{}}.png")
            )
    batch = next(loader_of(tmp_path, folders=("GT", "GT")))
    assert torch.equal(batch.gt, batch.lq + 100) and set(batch.lq[:, 2, 0, 0].tolist()) == {0, 1}


def test_rows_that_fill_no_degraded_pixel_are_never_cropped(tmp_path):
    """Photos of odd sizes beside their smaller ones, as evaluation takes them."""
    for number in range(3):
        write_pair(tmp_path, number, scale=2)
        path = tmp_path / f"GT/{number:03}.png"
        Image.fromarray(np.pad(np.asarray(Image.open(path)), ((0, 1), (0, 1), (0, 0)))).save(path)
    batch = next(loader_of(tmp_path, "sr2", batch_size=64))
    assert torch.equal(batch.gt, batch.lq.repeat_interleave(2, 2).repeat_interleave(2, 3) + 100)


def test_sizes_that_do_not_fit_are_refused_with_both_names(tmp_path):
    write_pair(tmp_path, 1)
    with pytest.raises(PairError, match=r"GT.001\.png is 56x40, but .*LQ.001\.png is 56x40; .* 2 times as large"):
        loader_of(tmp_path, "sr2")


def test_bad_and_absent_photos(tmp_path):
    write_pair(tmp_path, 1)
    (tmp_path / "LQ/bad.png").write_bytes(b"no photo")
    with pytest.raises(PairError, match=r"bad\.png cannot be used: .*; take it and its partner away"):
        loader_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImagesError, match="empty"):
        loader_of(tmp_path, folders=("GT", "empty"))


def test_a_photo_that_becomes_unreadable_is_replaced_with_its_partner(tmp_path):
    for number in range(3):
        write_pair(tmp_path, number)
    loader = loader_of(tmp_path, batch_size=9, crops_per_image=3)
    (tmp_path / "GT/001.png").write_bytes(b"corrupt")
    with pytest.warns(UserWarning, match=r"001\.png"):
        batch = next(loader)
    assert torch.equal(batch.gt, batch.lq + 100)
    assert not (batch.lq[:, 2] == 1).any()
    assert loader.stats()["bad_files"] == 1
