"""Mirroring images that are too small."""

import numpy as np
import pytest
import torch

from ipt_fast.io.mirror import mirror_pad


@pytest.mark.parametrize("height, width", [(1, 1), (1, 70), (47, 48), (5, 100), (3, 5)])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_padding_is_numpys_symmetric_one(height, width, centre, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    after = [max(0, 48 - side) for side in (height, width)]
    before = [more // 2 if centre else 0 for more in after]
    padding = [(b, a - b) for a, b in zip(after, before, strict=True)]
    wanted = np.pad(pixels, (*padding, (0, 0)), mode="symmetric")
    if kind == "array":
        out, *corner = mirror_pad(pixels, 48, axes=(0, 1), centre=centre)
    else:
        out, *corner = mirror_pad(torch.from_numpy(pixels).permute(2, 0, 1)[None], 48, centre=centre)
        assert out.shape == (1, 3, max(48, height), max(48, width))
        out = out[0].permute(1, 2, 0).numpy()
    assert np.array_equal(out, wanted) and corner == before


def test_a_large_image_is_left_as_it_is():
    image = torch.rand(2, 3, 60, 70)
    padded, top, left = mirror_pad(image, 48, centre=True)
    assert padded is image and (top, left) == (0, 0)
