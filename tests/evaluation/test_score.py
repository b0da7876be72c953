"""Scores: the input's known figures, noise that depends on its seed alone, borders, means."""

import math

import pytest
import torch

from ipt_fast import IPT, IPTConfig
from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.evaluation.metrics import psnr_y
from ipt_fast.evaluation.score import INPUT, Method, lq_and_gt, mean_scores, score_set
from ipt_fast.evaluation.test_sets import find_set
from ipt_fast.tasks import get_task
from tests.evaluation.scene_files import write


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(0)
    model = IPT(IPTConfig(n_feats=4, num_heads=3, num_layers=1, patch_size=12)).eval()
    return Method(model, "denoise50", {"overlap": 2})


@pytest.mark.parametrize("task, wanted", [("sr2", 33.67), ("sr3", 30.40), ("sr4", 28.43)])
def test_set5_input_is_bicubic_from_disk_and_made_here(shared, tmp_path, task, wanted):
    for folder in (shared / "data/Set5", shared / "data/Set5/HR"):
        scores = list(score_set(find_set(folder, get_task(task)), get_task(task), {}))
        assert len(scores) == 5 and {s.method for s in scores} == {INPUT}
        assert mean_scores(scores)[0].psnr_y == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("sigma", [10, 70])
def test_cbsd68_noise_is_what_its_level_says(shared, sigma):
    """RGB error of unclipped noise is sigma; clipping takes a little off, more of strong noise."""
    task = get_task(f"denoise{sigma}")
    image_set = find_set(shared / "data/CBSD68", task)
    mean = mean_scores(list(score_set(image_set, task, {}, limit=4)))[0]
    unclipped = 20 * math.log10(255 / sigma)
    assert 0 < mean.psnr_rgb - unclipped < {10: 0.3, 70: 2.0}[sigma]
    assert mean.psnr_y - mean.psnr_rgb > 3  # Y averages the three colours' noise


def test_noise_depends_on_seed_and_place_alone(tmp_path, method):
    for seed in range(3):
        write(tmp_path / f"{seed}.png", seed)
    task = get_task("denoise30")
    image_set = find_set(tmp_path, task)
    plain = list(score_set(image_set, task, {}, seed=1))
    beside = list(score_set(image_set, task, {"net": method}, seed=1, limit=2))
    assert [s for s in beside if s.method == INPUT] == plain[:2]
    assert next(score_set(image_set, task, {}, seed=2)) != plain[0]
    assert len({s.psnr_y for s in plain}) == 3
    noisy, gt = lq_and_gt(image_set.pairs[0], task, 7)
    assert noisy.min() == 0 and noisy.max() == 255 and (noisy != noisy.round()).any()
    assert gt.shape == noisy.shape == (1, 3, 36, 48)


def test_one_picture_twice_has_two_noises(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.png")
    task = get_task("denoise30")
    first, second = score_set(find_set(tmp_path, task), task, {})
    assert first.psnr_rgb != second.psnr_rgb


def test_methods_are_scored_beside_the_input(tmp_path, method):
    write(tmp_path / "a.png")
    task = get_task("denoise70")
    first, second = score_set(find_set(tmp_path, task), task, {"net": method})
    assert (first.method, second.method, second.image, second.task) == (INPUT, "net", "a", "denoise70")
    assert first.seconds == 0 < second.seconds and second.psnr_y != first.psnr_y


def test_super_resolution_leaves_its_border_out(tmp_path):
    write(tmp_path / "HR/a.png")
    write(tmp_path / "LR_bicubic/X4/ax4.png", size=(12, 9))
    task = get_task("sr4")
    image_set = find_set(tmp_path, task)
    before = next(score_set(image_set, task, {}))
    low, gt = lq_and_gt(image_set.pairs[0], task, 0)
    enlarged = bicubic_up(low, 4)
    assert before.psnr_y == psnr_y(enlarged, gt, border=4).item() != psnr_y(enlarged, gt).item()


def test_images_too_small_for_the_window_have_no_ssim(tmp_path):
    write(tmp_path / "a.png", size=(10, 8))
    score = next(score_set(find_set(tmp_path, get_task("denoise30")), get_task("denoise30"), {}))
    assert math.isnan(score.ssim_y) and score.psnr_y > 0


def test_means_are_per_set_task_and_method(tmp_path, method):
    for seed in range(2):
        write(tmp_path / f"{seed}.png", seed)
    task = get_task("denoise30")
    scores = list(score_set(find_set(tmp_path, task), task, {"net": method}))
    means = mean_scores(scores)
    assert [(m.method, m.image) for m in means] == [(INPUT, "mean"), ("net", "mean")]
    assert means[1].ssim_y == pytest.approx((scores[1].ssim_y + scores[3].ssim_y) / 2)
