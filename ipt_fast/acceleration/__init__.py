"""Make a network that exists faster, in place, without changing what it computes."""

from torch import nn

from ipt_fast.acceleration._attention import swap_attention
from ipt_fast.acceleration._swap import Report, unswap
from ipt_fast.acceleration._tails import swap_tails


class Acceleration:
    """What ``accelerate`` returns: call it to undo; ``report`` lists what was swapped and what not, and why."""

    def __init__(self, swapped: list[nn.Module], report: Report):
        self._swapped, self.report = swapped, report

    def __call__(self) -> None:
        """Give every module that this call of ``accelerate`` swapped its class back; a second time does nothing."""
        for module in self._swapped:
            unswap(module)
            module.__dict__.pop("_tail_is_followed", None)
        self._swapped = []

    def __repr__(self) -> str:
        return f"Acceleration of {len(self.report.swapped)} parts; call it to undo\n{self.report}"


def accelerate(network: nn.Module) -> Acceleration:
    """Swap what this package has a faster equal for, in place.

    Found are linear pixelshuffle tails (convolution, PixelShuffle, ..., convolution with nothing between, as in EDSR,
    RCAN, SwinIR, HAT and IPT), which become ``pixelshuffle_tail``, and ``nn.MultiheadAttention``, which becomes
    ``patch_attention`` where it is called with embeddings added to queries and keys, as in DETR.

    Modules keep their parameters, buffers, names, device, dtype and mode: only their class changes, to a subclass of
    it. So optimizers, checkpoints, ``isinstance`` and copies work as before. At each call it is checked again that the
    fast way gives the same; a convolution that was replaced, a mask, or a hook registered later are all honoured.

    Args:
        network: any module; swapped in place. Modules that are swapped already are left alone.

    Returns:
        An ``Acceleration``: call it to undo; its ``report`` has ``swapped`` and ``refused``, lists of (path, what or
        why), and ``already``.

    Raises:
        TypeError: no ``nn.Module``, or a scripted one, whose forward cannot change.
    """
    import torch

    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"accelerate: needs an nn.Module that is not scripted (got {type(network).__name__})")
    report = Report()
    swapped = swap_tails(network, report) + swap_attention(network, report)
    return Acceleration(swapped, report)


__all__ = ["Acceleration", "Report", "accelerate"]
