"""A task's tail: features to image, linear from end to end."""

from torch import Tensor, nn

from ipt_fast.model.layers import is_plain
from ipt_fast.ops import pixelshuffle_tail

# Of the PixelShuffles, by the scale of the task.
SCALES: dict[int, tuple[int, ...]] = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}


class Tail(nn.Sequential):
    """Features [B, n_feats, S, S] -> image [B, 3, scale S, scale S]: convolutions and PixelShuffles, no activation.

    Being linear it runs as one op, in training too. The convolutions only hold that op's parameters; one that somebody
    has replaced or parametrized is called as a module, and the others with it.
    """

    def __init__(self, n_feats: int, scale: int):
        stages: list[nn.Module] = []
        for r in (scales := SCALES[scale]):
            stages += [nn.Conv2d(n_feats, n_feats * r * r, 3, padding=1), nn.PixelShuffle(r)]
        super().__init__(nn.Sequential(*stages), nn.Conv2d(n_feats, 3, 3, padding=1))
        self.scales = scales

    def plain_convs(self) -> list[nn.Module] | None:
        """Return the convolutions in order, None where one is no longer what the tail was built with."""
        upsample, last = self
        assert isinstance(upsample, nn.Sequential)
        convs = [*upsample][::2] + [last]
        return convs if all(is_plain(conv, nn.Conv2d) for conv in convs) else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, n_feats, S, S] -> [B, 3, scale S, scale S]."""
        convs = self.plain_convs()
        return super().forward(x) if convs is None else pixelshuffle_tail(x, convs, self.scales)
