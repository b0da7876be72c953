"""Sample grids: what is where, and that a pixel is drawn as it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.evaluation.held_out import HeldOutResult
from ipt_fast.evaluation.sample_grid import CAPTION, GAP, TITLE, sample_grid, write_sample_grids


def result(photo="cat", draw=0, before=20.0, task="derain"):
    flat = torch.full((3, 160, 200), 40.0)
    clean = flat.clone()
    clean[:, 100:, 150:] = torch.randint(0, 256, (3, 60, 50)).float()  # the detail is in this corner
    return HeldOutResult(task, photo, draw, flat, flat + 60, clean, before, before + 1.5)


def test_three_pictures_of_the_most_detailed_square_pixel_by_pixel():
    sample = result()
    picture = np.asarray(sample_grid([sample], crop=64, zoom=2))
    tops, lefts = TITLE, [GAP + column * (128 + GAP) for column in range(3)]
    tiles = [picture[tops : tops + 128, left : left + 128] for left in lefts]
    assert (tiles[0] == 40).all() and (tiles[1] == 100).all()
    assert tiles[2].std() > 30, "the corner with the detail is not in the picture"
    assert np.array_equal(tiles[2][::2, ::2], tiles[2][1::2, 1::2])
    small = tiles[2][::2, ::2]
    clean = sample.gt.permute(1, 2, 0).byte().numpy()
    assert any(
        np.array_equal(small, clean[y : y + 64, x : x + 64]) for y in range(0, 97, 16) for x in range(0, 137, 16)
    )


def test_one_row_a_photo_with_the_draw_of_middling_damage():
    draws = [replace(result("dog", i, before), before=result().before + i) for i, before in enumerate((30, 10, 20))]
    picture = sample_grid([result("cat"), *draws], crop=64, zoom=1)
    assert picture.size == (3 * 64 + 4 * GAP, TITLE + 2 * (64 + CAPTION + GAP))
    second = np.asarray(picture)[TITLE + 64 + CAPTION + GAP :, GAP : GAP + 64][:64]
    assert (second == 42).all()  # 10 < 20 < 30: draw 2


def test_a_photo_smaller_than_the_square():
    small = HeldOutResult("sr2", "tiny", 0, *(torch.full((3, 20, 30), 9.0) for _ in range(3)), 1.0, 2.0)
    assert sample_grid([small], crop=64, zoom=1).width == 3 * 64 + 4 * GAP


def test_one_file_a_task(tmp_path):
    paths = write_sample_grids([result(task="sr2"), result(task="denoise30")], tmp_path / "samples")
    assert [path.name for path in paths] == ["sr2.png", "denoise30.png"]
    assert all(Image.open(path).mode == "RGB" for path in paths)


@pytest.mark.parametrize("results, said", [([], "none"), ([result(), result(task="sr2")], "derain")])
def test_results_of_no_task_or_of_two_are_refused(results, said):
    with pytest.raises(ValueError, match=said):
        sample_grid(results)
