"""Flips and rotations: each of the eight, the same for both photos of a pair, drawn from the seed alone."""

import torch
import torch.nn.functional as F

from ipt_fast.engine.step import draw_orientation, orient


def test_seeds_in_a_row_draw_all_eight_evenly_and_always_the_same():
    seeds = torch.arange(8000) + (1 << 50)
    drawn = draw_orientation(seeds)
    counts = torch.bincount(drawn, minlength=8)
    assert len(counts) == 8 and counts.min() > 850 and counts.max() < 1150
    assert torch.equal(drawn[100:200], draw_orientation(seeds[100:200]))
    # Neighbours are independent: each pair of draws comes about as often as any other.
    pairs = torch.bincount(drawn[:-1] * 8 + drawn[1:], minlength=64)
    assert pairs.min() > 80 and pairs.max() < 175


def test_orientations_are_the_eight_of_a_square():
    image = torch.arange(2 * 3 * 3).view(1, 2, 3, 3)
    turned = orient(image.expand(8, -1, -1, -1), torch.arange(8))
    assert torch.equal(turned[0], image[0])
    assert len({tuple(x.flatten().tolist()) for x in turned}) == 8
    for x in turned:
        assert sorted(x[0].flatten().tolist()) == list(range(9))
        assert torch.equal(x[1], x[0] + 9)  # channels stay channels


def test_samples_are_turned_each_by_its_own():
    images = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8)
    orientation = torch.tensor([0, 7, 3, 3, 4])
    together = orient(images, orientation)
    assert together.dtype == torch.uint8
    for i in range(5):
        assert torch.equal(together[i : i + 1], orient(images[i : i + 1], orientation[i : i + 1]))


def test_a_pair_stays_a_pair():
    target, every = torch.rand(8, 3, 12, 12), torch.arange(8)
    assert torch.equal(orient(F.max_pool2d(target, 2), every), F.max_pool2d(orient(target, every), 2))
