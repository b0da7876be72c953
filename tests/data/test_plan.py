import numpy as np
import pytest

from ipt_fast.data.plan import CropPlan, crop_spec, subset
from ipt_fast.tasks import TASKS


def plan(n_images=50, global_batch=8, seed=0, **options):
    rng = np.random.default_rng(1)
    heights, widths = rng.integers(48, 500, (2, n_images))
    crops = tuple(crop_spec(task, 48) for task in options.pop("tasks", TASKS))
    return CropPlan(widths, heights, crops, global_batch, seed, **options)


def joined(parts, name):
    return np.concatenate([getattr(part, name) for part in parts])


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_out_the_same_global_batch(world_size):
    whole = plan()
    for step in (0, 3, whole.batches_per_epoch, 1000):
        parts = [whole.batch(step, rank, world_size) for rank in range(world_size)]
        one = whole.batch(step)
        for name in ("images", "tops", "lefts", "seeds", "places"):
            assert (joined(parts, name) == getattr(one, name)).all()
        assert {part.crop for part in parts} == {one.crop}


def test_an_epoch_takes_each_photo_once_and_fills_its_last_batch():
    whole = plan(n_images=50, global_batch=8)
    assert whole.batches_per_epoch == 7
    images = joined([whole.batch(step) for step in range(7)], "images")
    assert sorted(images[:50]) == list(range(50))
    assert len(images) == 56
    assert whole.batch(6).epoch == 0 and whole.batch(7).epoch == 1


def test_epochs_differ_in_order_and_crops():
    whole = plan(n_images=48)
    first, second = (joined([whole.batch(e * 6 + s) for s in range(6)], "images") for e in (0, 1))
    assert (first != second).sum() > 24
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize("n_images, global_batch", [(1, 1), (1, 256), (13, 256), (13, 13), (13, 5)])
def test_sets_smaller_than_a_batch_fill_it_with_further_crops(n_images, global_batch):
    whole = plan(n_images, global_batch)
    batch = whole.batch(whole.batches_per_epoch - 1)
    assert len(batch.images) == global_batch
    counts = np.bincount(joined([whole.batch(s) for s in range(whole.batches_per_epoch)], "images"), minlength=n_images)
    assert counts.max() - counts.min() <= 1
    assert len(set(batch.seeds)) == global_batch


def test_crops_of_one_photo_lie_side_by_side_and_differ():
    whole = plan(n_images=12, global_batch=12, crops_per_image=4, tasks=("denoise30",))
    assert whole.batches_per_epoch == 4
    batch = whole.batch(0)
    assert (batch.images.reshape(3, 4) == batch.images.reshape(3, 4)[:, :1]).all()
    assert len(set(zip(batch.tops, batch.lefts, strict=True))) > 9


@pytest.mark.parametrize("task, size, scale", [("sr2", 104, 2), ("sr3", 156, 3), ("sr4", 208, 4), ("derain", 48, 1)])
def test_crops_lie_in_the_photo_and_on_the_grid(task, size, scale):
    whole = plan(n_images=200, global_batch=200, tasks=(task,))
    assert crop_spec(task, 48) == (task, scale, size)
    batch = whole.batch(0)
    heights, widths = whole.heights[batch.images], whole.widths[batch.images]
    assert (batch.tops % scale == 0).all() and (batch.lefts % scale == 0).all()
    assert (batch.tops + size <= np.maximum(heights, size)).all()
    assert (batch.lefts + size <= np.maximum(widths, size)).all()
    assert (batch.tops[heights < size] == 0).all()


def test_crops_are_uniform_over_the_photo():
    n = 4000
    whole = CropPlan(np.full(n, 57), np.full(n, 57), (crop_spec("derain", 48),), n, seed=5)
    counts = np.bincount(whole.batch(0).tops, minlength=10)
    assert len(counts) == 10
    # 400 expected each, standard deviation 19
    assert counts.min() > 310 and counts.max() < 490


def test_tasks_are_drawn_uniformly_and_by_the_seed():
    whole = plan()
    drawn = [whole.crop_at(step).task for step in range(6000)]
    counts = [drawn.count(task) for task in TASKS]
    assert min(counts) > 880 and max(counts) < 1120
    assert drawn[:50] != [plan(seed=1).crop_at(step).task for step in range(50)]


EXPECTED = {
    "task": "denoise30",
    "images": [76, 8, 27, 78],
    "tops": [138, 95, 63, 1],
    "lefts": [54, 106, 178, 146],
    "seeds": [3967728021531584272, 2467558700277551427, 185096695810608036, 3552541999087695503],
}


def test_the_plan_never_changes():
    # A changed number here means that a checkpoint no longer resumes into the same order.
    batch = plan(n_images=100, global_batch=4, seed=7).batch(3)
    assert batch.crop.task == EXPECTED["task"]
    for name in ("images", "tops", "lefts", "seeds"):
        assert getattr(batch, name).tolist() == EXPECTED[name]


def test_shares_are_nested_and_fixed():
    small, large = subset(1000, 0.2), subset(1000, 0.6)
    assert len(small) == 200 and len(large) == 600
    assert set(small) <= set(large)
    assert (subset(10, 1.0) == np.arange(10)).all()
    assert len(subset(3, 0.01)) == 1


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_a_share_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=f"data_fraction is {fraction}"):
        subset(10, fraction)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_images": 0}, "no photo"),
        ({"tasks": ()}, "tasks is empty"),
        ({"tasks": ("sr5",)}, "sr5"),
        ({"global_batch": 0}, "global_batch is 0"),
        ({"crops_per_image": 0}, "crops_per_image is 0"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)
