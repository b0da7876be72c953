"""Matching of clean and degraded images by their names."""

import pytest

from ipt_fast.io.pairs import PairError, match_pairs


def match(gt, lq, scale=1):
    roots = {"gt_root": "/data/GT", "lq_root": "/data/LQ"}
    pairs = match_pairs([f"/data/GT/{p}" for p in gt], [f"/data/LQ/{p}" for p in lq], scale, **roots)
    return [(clean.removeprefix("/data/GT/"), degraded.removeprefix("/data/LQ/")) for clean, degraded in pairs]


@pytest.mark.parametrize(
    "gt, lq, scale",
    [
        (["a.png", "b.png"], ["a.jpg", "b.jpg"], 1),
        (["norain-001.png", "norain-002.png"], ["rain-001.png", "rain-002.png"], 1),
        (["norain001.png"], ["rain001.png"], 1),
        (["baby.png", "bird.png"], ["babyx2.png", "birdx2.png"], 2),
        (["baby_HR.png"], ["baby_LRBI_x4.png"], 4),
        (["0001.png"], ["0001x4m.png"], 4),
        (["img_GT.png"], ["img_blur.png"], 1),
        (["GT_7.png"], ["noisy_7.png"], 1),
        (["box2.png", "box3.png"], ["box2.png", "box3.png"], 1),
        (["box2.png", "box3.png"], ["box2.png", "box3.png"], 2),
        (["fox.png", "fox2.png"], ["foxx2.png", "fox2x2.png"], 2),
        (["HR_fox2.png"], ["LR_fox2x2.png"], 2),
        (["000/0001.png", "001/0001.png"], ["000/0001.png", "001/0001.png"], 1),
        (["GOPR1/sharp_1.png", "GOPR2/sharp_1.png"], ["GOPR1/blur_1.png", "GOPR2/blur_1.png"], 1),
        (["a/sharp/1.png", "b/sharp/1.png"], ["a/blur/1.png", "b/blur/1.png"], 1),
        (["x/001.png", "x/002.png"], ["y/001.png", "y/002.png"], 1),
        (["s.tar::a.png"], ["s.tar::a.jpg"], 1),
        (["train.png", "rainbow.png"], ["train.png", "rainbow.png"], 1),
    ],
)
def test_partners(gt, lq, scale):
    assert match(gt, lq, scale) == list(zip(gt, lq, strict=True))
    assert match(gt[::-1], lq, scale) == list(zip(gt, lq, strict=True))


@pytest.mark.parametrize(
    "gt, lq, scale, message",
    [
        (["a", "b"], ["a"], 1, r"GT/b has no partner in /data/LQ, which holds a; partners have the same name"),
        (["a"], ["a", "b"], 1, r"LQ/b has no partner in /data/GT, which holds a;"),
        (["a"], [], 1, "GT/a has no partner, there are no images on the other side"),
        (["a.png", "a.bmp"], ["a.png"], 1, r"GT/a\.bmp and /data/GT/a\.png would both be the clean image of .*LQ/a"),
        (["norain-c"], ["c", "rain-c"], 1, r"LQ/c and /data/LQ/rain-c would both be the partner of /data/GT/norain-c"),
        (["babyx2"], ["babyx3"], 1, "babyx2 has no partner"),
        (["baby"], ["babyx3"], 2, "baby has no partner"),
        (["000/1", "001/1"], ["002/1", "003/1"], 1, "000/1 has no partner"),
    ],
)
def test_never_a_guess(gt, lq, scale, message):
    with pytest.raises(PairError, match=message):
        match(gt, lq, scale)
