"""Scores on photos that were never trained on: the right pairs are compared, and every draw is the same again."""

import pytest
import torch

from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.evaluation import held_out
from ipt_fast.evaluation.held_out import RAIN_DRAWS, mean_psnr, score_held_out, score_rows
from ipt_fast.evaluation.metrics import psnr_y

PHOTOS = {
    name: torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(width))
    for name, height, width in (("wide", 26, 37), ("tall", 40, 24))
}


@pytest.fixture
def restored(monkeypatch):
    """Replace ``restore`` by one that gives its input back, enlarged where asked, and notes the calls."""
    asked = []

    def restore(model, image, task):
        asked.append((task, image.clone()))
        return bicubic_up(image, int(task[2:])) if task.startswith("sr") else image + 300 * (task == "denoise50")

    monkeypatch.setattr(held_out, "restore", restore)
    return asked


def test_an_identity_neither_gains_nor_loses(restored):
    results = score_held_out(None, PHOTOS, ["sr2", "sr3", "derain", "denoise30"])
    assert [(r.task, r.photo) for r in results if r.draw == 0] == [
        (task, photo) for task in ("sr2", "sr3", "derain", "denoise30") for photo in PHOTOS
    ]
    for r in results:
        assert r.psnr_after == pytest.approx(r.psnr_before, abs=1e-4)
        assert r.before.shape == r.after.shape == r.gt.shape


def test_sides_are_cut_to_the_scale_and_the_border_left_out(restored):
    wide = score_held_out(None, PHOTOS, ["sr3"])[0]
    assert wide.gt.shape == (3, 24, 36) and restored[0][1].shape == (1, 3, 8, 12)
    assert torch.equal(wide.gt, PHOTOS["wide"][:, :24, :36].float())
    assert wide.psnr_before == pytest.approx(psnr_y(wide.before[None], wide.gt[None], border=3).item())


def test_output_is_clamped_and_rounded_before_it_is_scored(restored):
    result = score_held_out(None, PHOTOS, ["denoise50"])[0]
    assert (result.after == 255).all() and torch.equal(result.before, result.before.round())
    assert result.psnr_after == pytest.approx(psnr_y(result.after[None], result.gt[None]).item())


def test_every_photo_and_draw_has_its_own_rain_and_gets_it_again(restored):
    first = score_held_out(None, PHOTOS, ["derain"])
    again = score_held_out(None, PHOTOS, ["derain"])
    other = score_held_out(None, PHOTOS, ["derain"], seed=1)
    assert len(first) == RAIN_DRAWS * len(PHOTOS)
    assert all(torch.equal(a.before, b.before) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.before, b.before) for a, b in zip(first, other, strict=True))
    assert len({r.before.sum().item() for r in first}) == len(first)


def test_means_and_table(restored):
    results = score_held_out(None, PHOTOS, ["denoise30", "denoise50"])
    means = mean_psnr(results)
    assert list(means) == ["denoise30", "denoise50"]
    assert means["denoise30"][0] == pytest.approx((results[0].psnr_before + results[1].psnr_before) / 2)
    task, before, after, gain = score_rows(results)[1]
    assert (task, before, after) == ("denoise50", *(f"{mean:.2f}" for mean in means["denoise50"]))
    assert gain == f"{means['denoise50'][1] - means['denoise50'][0]:+.2f}"
