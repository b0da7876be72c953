"""Every crop of every loader is photo[top : top + S, left : left + S] with the numbers of the plan.

The photos are decoded here by Pillow, on its own; the plan's numbers are pinned in test_plan.py.
"""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.data import build_index, make_loader, make_pair_loader
from ipt_fast.data.plan import CropPlan, CropSpec, crop_spec, subset
from ipt_fast.tasks import TASKS
from tests.data.photo_files import KINDS, pixels

TURNED = Image.Exif()
TURNED[0x0112] = 6


def save(folder, name, array, **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / name, **options)


@pytest.fixture
def photos(tmp_path):
    """JPEGs of all subsamplings, progressive, gray, turned by EXIF, CMYK; PNGs; photos smaller than their crops."""
    folder = tmp_path / "photos"
    for number, sampling in enumerate((0, 1, 2)):
        save(folder, f"a{number}.jpg", pixels(230 + number, 260 - number, number), subsampling=sampling, quality=92)
    save(folder, "progressive.jpg", pixels(215, 250, 3), progressive=True)
    save(folder, "gray.jpg", pixels(240, 225, 4)[..., 0])
    save(folder, "turned.jpg", pixels(211, 290, 5), exif=TURNED)
    save(folder, "rgb.png", pixels(220, 219, 6))
    save(folder, "gray.png", pixels(212, 213, 7)[..., 1])
    save(folder, "low.jpg", pixels(50, 230, 8))
    save(folder, "narrow.png", pixels(300, 51, 9))
    save(folder, "tiny.jpg", pixels(49, 48, 10))
    Image.fromarray(pixels(214, 222, 11)).convert("CMYK").save(folder / "cmyk.jpg")
    return folder


def decoded(path):
    """Pillow's pixels as stored, uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def region(photo, top, left, size):
    """uint8 [3, S, S]; photos that are too small go on mirrored below and to the right."""
    height, width = photo.shape[:2]
    photo = np.pad(photo, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)), mode="symmetric")
    crop = photo[top : top + size, left : left + size]
    assert crop.shape == (size, size, 3)
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)


def plan_of(entries, crops, global_batch, seed=0, patch_size=48, crops_per_image=1):
    widths, heights = (np.array([getattr(entry, side) for entry in entries]) for side in ("width", "height"))
    return CropPlan(widths, heights, crops, global_batch, seed, patch_size, crops_per_image)


def check(batch, plan, photos):
    """Check the whole batch against its plan; return the photos seen."""
    assert (batch.step, batch.epoch, batch.task) == (plan.step, plan.epoch, plan.crop.task)
    assert batch.seeds.tolist() == plan.seeds.tolist() and batch.gt.dtype == torch.uint8
    assert batch.gt.shape == (len(plan.images), 3, plan.crop.size, plan.crop.size)
    for crop, image, top, left in zip(batch.gt, plan.images, plan.tops, plan.lefts, strict=True):
        assert torch.equal(crop, region(photos[image], top, left, plan.crop.size)), (batch.task, image, top, left)
    return set(plan.images.tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ranks, options",
    [
        (1, {"batch_size": 5, "seed": 3}),
        (1, {"batch_size": 4, "crops_per_image": 3, "workers": 2}),
        (1, {"batch_size": 30, "tasks": ("sr4", "denoise15"), "patch_size": 24}),  # photos come twice in a batch
        (3, {"batch_size": 2, "tasks": ("sr2", "sr3", "derain"), "workers": 1}),
        (2, {"batch_size": 3, "data_fraction": 0.7, "crops_per_image": 2}),
    ],
)
def test_every_crop_is_the_region_that_the_plan_names(photos, kind, ranks, options):
    index = build_index([photos], min_size=24, progress=False)
    settings = {"tasks": TASKS, "seed": 0, "patch_size": 48, "crops_per_image": 1, "data_fraction": 1.0, "workers": 0}
    settings |= options
    entries = [index.usable[i] for i in subset(len(index.usable), settings["data_fraction"])]
    images = [decoded(entry.path) for entry in entries]
    crops = tuple(crop_spec(task, settings["patch_size"]) for task in settings["tasks"])
    numbers = (settings["seed"], settings["patch_size"], settings["crops_per_image"])
    plan = plan_of(entries, crops, ranks * settings["batch_size"], *numbers)
    seen, tasks = set(), set()
    for rank in range(ranks):
        loader = make_loader(index, loader=kind, device="cpu", rank=rank, world_size=ranks, **settings)
        assert loader.batches_per_epoch == plan.batches_per_epoch
        for step in range(max(8, plan.batches_per_epoch + 2)):  # across the end of an epoch
            batch = next(loader)
            seen |= check(batch, plan.batch(step, rank, ranks), images)
            assert batch.lq is None
            tasks.add(batch.task)
        loader.close()
    assert seen == set(range(len(entries)))
    assert len(tasks) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_unreadable_photo_is_replaced_by_the_crop_that_the_plan_names(photos, kind):
    index = build_index([photos], progress=False)
    entries = index.usable
    images = [decoded(entry.path) for entry in entries]
    plan = plan_of(entries, (crop_spec("sr2", 48), crop_spec("denoise50", 48)), 6)
    loader = make_loader(index, loader=kind, device="cpu", tasks=("sr2", "denoise50"), batch_size=6, workers=1)
    gone = [entry.path.rpartition("/")[2] for entry in entries].index("a1.jpg")
    (photos / "a1.jpg").unlink()
    found = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(8):
            batch, drawn = next(loader), plan.batch(step)
            for sample in np.flatnonzero(drawn.images == gone):
                substitutes = (plan.substitute(drawn, sample, attempt) for attempt in range(16))
                image, top, left = next(item for item in substitutes if item[0] != gone)
                assert torch.equal(batch.gt[sample], region(images[image], top, left, drawn.crop.size))
                drawn.images[sample], drawn.tops[sample], drawn.lefts[sample] = image, top, left
                found += 1
            check(batch, drawn, images)
    assert found >= 4 and loader.stats()["bad_samples"] == found
    loader.close()


@pytest.mark.parametrize("task, scale", [("derain", 1), ("deblur", 1), ("denoise70", 1), ("sr2", 2), ("sr3", 3)])
@pytest.mark.parametrize("ranks, crops_per_image, workers", [(1, 1, 0), (2, 2, 1)])
def test_both_crops_of_a_pair_are_the_regions_that_the_plan_names(
    tmp_path, task, scale, ranks, crops_per_image, workers
):
    sides = [(60, 81), (47, 33), (20, 52), (31, 19), (70, 70)]  # two of them smaller than the patch
    for number, (height, width) in enumerate(sides):
        form = "png" if number % 2 else "jpg"
        save(tmp_path / "LQ", f"{number}.{form}", pixels(height, width, number))
        save(tmp_path / "GT", f"{number}.png", pixels(scale * height, scale * width, 50 + number))
    entries = build_index([tmp_path / "LQ"], min_size=1, progress=False).usable
    lq = [decoded(entry.path) for entry in entries]
    gt = [decoded(tmp_path / "GT" / f"{number}.png") for number in range(len(sides))]
    plan = plan_of(entries, (CropSpec(task, 1, 24),), 4, 5, 24, crops_per_image)
    seen = set()
    for rank in range(ranks):
        options = {"batch_size": 4 // ranks, "rank": rank, "world_size": ranks, "crops_per_image": crops_per_image}
        options |= {"seed": 5, "patch_size": 24, "workers": workers, "progress": False}
        loader = make_pair_loader(tmp_path / "GT", tmp_path / "LQ", task, **options)
        for step in range(6):
            batch, drawn = next(loader), plan.batch(step, rank, ranks)
            assert batch.lq.is_contiguous() and batch.gt.is_contiguous()
            seen |= check(batch._replace(gt=batch.lq), drawn, lq)
            for crop, image, top, left in zip(batch.gt, drawn.images, drawn.tops, drawn.lefts, strict=True):
                assert torch.equal(crop, region(gt[image], scale * top, scale * left, scale * 24))
        loader.close()
    assert seen == set(range(len(sides)))
