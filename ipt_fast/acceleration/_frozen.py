"""The one place where a tail is collapsed for good, for ``accelerate(network, frozen=True)``."""

from collections.abc import Sequence

from torch import Tensor, nn


def collapse(convs: Sequence[tuple[Tensor, Tensor | None]], scales: Sequence[int]) -> nn.Module:
    """Return a module that computes the tail with the weights as they are now."""
    from ipt_fast.ops.pixelshuffle_tail import collapse_tail

    return collapse_tail(convs, scales)
