import numpy as np
import pytest

from ipt_fast.data.plan import CropPlan, CropSpec, crop_spec, shard_order, subset
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


# The plan of 40 photos. A changed number here means that a checkpoint no longer resumes into the same order.
SIDES = np.arange(40)
PINNED = {
    "all tasks": (
        (TASKS, 6, 11, 1), (0, 0, 1), 0, "sr3", [36, 25, 27, 9, 2, 28], [9, 12, 81, 195, 0, 96],
        [294, 66, 102, 54, 6, 129],
        [6160449874390736853, 2704758064770923610, 4377147987019789361, 1907560258894807694, 6536101629200005624,
         2330999603036467090],
    ),
    "second of two ranks, second epoch": (
        (TASKS, 6, 11, 1), (9, 1, 2), 1, "sr4", [23, 9, 16], [0, 84, 4], [36, 140, 36],
        [6557557218366756416, 7043493760330218711, 3558026276363022016],
    ),
    "filled last batch": (
        (("sr4",), 6, 11, 1), (8, 0, 1), 1, "sr4", [6, 10, 0, 29, 17, 2], [36, 92, 0, 4, 56, 0],
        [144, 0, 0, 0, 176, 0],
        [2300055248623556071, 1817473928101904496, 9212258893240342486, 8603511153546756152, 5724899558523159530,
         8234301049787790894],
    ),
    "three crops an image": (
        (("derain",), 4, 11, 3), (1, 0, 1), 0, "derain", [25, 25, 27, 27], [77, 95, 49, 94], [225, 112, 114, 185],
        [6536101629200005624, 2330999603036467090, 4729636669167916471, 6771614929521540016],
    ),
    "pairs, whatever their task": (
        (CropSpec("sr2", 1, 24), 4, 2, 1), (11, 0, 1), 1, "sr2", [30, 22, 14, 2], [265, 24, 0, 72], [42, 22, 171, 28],
        [5682318481156101807, 2916499519010745814, 3334476025359003045, 9178382870422323125],
    ),
}  # fmt: skip


def pinned_plan(tasks, global_batch, seed, crops_per_image):
    crops = (tasks,) if isinstance(tasks, CropSpec) else tuple(crop_spec(task, 48) for task in tasks)
    return CropPlan(60 + SIDES * 53 % 500, 50 + SIDES * 37 % 400, crops, global_batch, seed, 48, crops_per_image)


@pytest.mark.parametrize("name", PINNED)
def test_the_plan_never_changes(name):
    settings, at, epoch, task, images, tops, lefts, seeds = PINNED[name]
    batch = pinned_plan(*settings).batch(*at)
    assert (batch.step, batch.epoch, batch.crop.task) == (at[0], epoch, task)
    assert [array.tolist() for array in (batch.images, batch.tops, batch.lefts, batch.seeds)] == [
        images, tops, lefts, seeds
    ]  # fmt: skip


def test_tasks_substitutes_and_fixed_shuffles_never_change():
    whole = pinned_plan(TASKS, 6, 11, 1)
    assert [TASKS.index(whole.crop_at(step).task) for step in range(12)] == [1, 0, 3, 3, 2, 1, 2, 5, 1, 2, 0, 2]
    sr3 = pinned_plan(("sr3",), 6, 11, 1)
    assert [sr3.substitute(sr3.batch(2), 1, attempt) for attempt in range(3)] == [
        (0, 0, 0),
        (25, 15, 177),
        (36, 21, 243),
    ]
    assert subset(40, 0.2).tolist() == [1, 8, 11, 12, 14, 17, 28, 35]
    assert shard_order(12).tolist() == [9, 5, 3, 8, 2, 11, 10, 6, 7, 1, 4, 0]


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
