"""Images that lie on a device as a whole: the same result as in strips, whatever the size, the scale and the batch."""

import pytest
import torch

from ipt_fast.tiling.strips import Layout, Source, gathered, restored_strips
from ipt_fast.tiling.whole import fits_whole, restored_whole

CPU = torch.device("cpu")


class Disagreeing(torch.nn.Module):
    """Neighbouring windows disagree, by how bright they are and by where a pixel lies; ``scale`` times as large."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        y = x.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)
        return y + x.mean((1, 2, 3), keepdim=True) + torch.linspace(-9, 9, y.shape[-1])


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("size", [(97, 131), (48, 48), (20, 60), (49, 7)])
@pytest.mark.parametrize("overlap, margin", [(10, 0), (0, 0), (6, 3), (30, 2)])
def test_it_is_the_result_in_strips(scale, size, overlap, margin):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    layout, network = Layout(48, scale, overlap, margin=margin), Disagreeing(scale)
    strips = restored_strips(network, [Source.of(image) for image in images], layout, CPU, 5)
    wanted = [gathered(one, size[0] * scale, torch.float32, CPU) for one in strips]
    shares = []
    for batch_size, full in ((5, False), (64, False), (5, True)):
        ours = list(restored_whole(network, list(images), layout, batch_size, shares.append, full=full))
        assert len(ours) == 2
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    assert sum(shares) == pytest.approx(3)


def test_a_window_gone_wrong_is_seen_where_it_lies_alone():
    image = torch.zeros(1, 48, 200)
    image[..., 199] = torch.nan
    (out,) = restored_whole(lambda x: x + x.sum((1, 2, 3), keepdim=True), [image], Layout(48, 1, 10), 64)
    assert out[..., :152].isfinite().all() and out[..., 152:].isnan().all()


def test_what_does_not_fit():
    assert fits_whole(Layout(48, 4, 10), 512, 768) and not fits_whole(Layout(48, 4, 10), 4000, 6000)
    assert not fits_whole(Layout(48, 1, 10, "official"), 64, 64)
