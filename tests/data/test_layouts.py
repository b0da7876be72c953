"""Folders as people have them, several at once, and a fixed share of them."""

import io
import tarfile

import numpy as np
import pytest
import torch

from tests.data.photo_files import KINDS, jpeg_bytes, pixels


def flat_colour(level):
    """Return a photo of 60x70 known again by the level of any crop, or its neighbours after JPEG."""
    return jpeg_bytes(np.full((60, 70, 3), level, np.uint8), quality=100)


@pytest.fixture
def layouts(tmp_path):
    """Classes, flat, nested, a folder of shards, one shard, one photo: photo i has the level 6 i."""
    names = [
        *("classes/n01440764/a.JPEG", "classes/n01440764/b.JPEG", "classes/n01530575/a.JPEG"),
        *("flat/a.jpg", "flat/b.jpeg", "flat/C.JPG"),
        *("nested/2021/may/trip/a.jpg", "nested/2022/a.jpg", "nested/b.jpg"),
        *("shards/0.tar::a.jpg", "shards/0.tar::dir/b.jpg", "shards/deeper/1.tar::a.jpg"),
        *("one.tar::x.jpg", "one.tar::y.jpg", "photo.jpg"),
    ]
    for i, name in enumerate(names):
        path, _, member = name.partition("::")
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if not member:
            (tmp_path / path).write_bytes(flat_colour(6 * i))
            continue
        with tarfile.open(tmp_path / path, "a") as shard:
            info = tarfile.TarInfo(member)
            info.size = len(flat_colour(6 * i))
            shard.addfile(info, io.BytesIO(flat_colour(6 * i)))
    roots = [tmp_path / name for name in ("classes", "flat", "nested", "shards", "one.tar", "photo.jpg")]
    return roots, len(names)


@pytest.fixture
def opened(opened, layouts):
    """Return a loader whose first batch is all photos."""
    return lambda roots, **options: opened(roots, **{"tasks": ("denoise30",), "batch_size": layouts[1], **options})


def seen(batch):
    """Which photos the crops are of."""
    return sorted(round(float(level) / 6) for level in batch.gt.float().mean((1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_all_layouts_together_make_one_epoch(layouts, opened, kind):
    roots, count = layouts
    loader = opened(roots, loader=kind)
    for _ in range(2):
        assert seen(next(loader)) == list(range(count))
    assert loader.stats()["bad_samples"] == 0


def test_a_folder_given_twice_counts_once(layouts, opened):
    roots, count = layouts
    assert opened([*roots, roots[0], roots[0] / "n01440764"]).batches_per_epoch == 1
    assert seen(next(opened([*roots, roots[0]]))) == list(range(count))


def test_the_order_of_the_folders_does_not_matter(layouts, opened):
    roots, _ = layouts
    one, other = next(opened(roots)), next(opened(roots[::-1]))
    assert torch.equal(one.gt, other.gt)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_is_fixed_whatever_the_seed_and_nested(layouts, opened, kind):
    """The paper's Figure 6: 20 % is the same 20 % in every run, and a part of 60 %."""
    roots, count = layouts
    shares = {}
    for fraction in (0.2, 0.6):
        size = round(fraction * count)
        epochs = [
            seen(next(opened(roots, loader=kind, data_fraction=fraction, seed=seed, batch_size=size)))
            for seed in (0, 1)
        ]
        assert epochs[0] == epochs[1] and len(set(epochs[0])) == size
        shares[fraction] = set(epochs[0])
    assert shares[0.2] < shares[0.6] < set(range(count))


def test_a_share_counts_photos_that_can_be_used(layouts, opened):
    roots, count = layouts
    for number in range(20):
        (roots[1] / f"bad{number}.jpg").touch()
    (roots[1] / "small.jpg").write_bytes(jpeg_bytes(pixels(30, 30)))
    loader = opened(roots, data_fraction=0.4, batch_size=1)
    assert loader.batches_per_epoch == round(0.4 * count)
