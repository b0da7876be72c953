"""16-bit copies of the float32 weights, all made at once for one step.

Autocast casts each weight where it is used, and each of its gradients back: a thousand small passes a step. Here one
pass makes all copies and one takes all gradients back to float32, where the optimizer finds them as ever.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ipt_fast.model.ipt import MeanShift
from ipt_fast.model.layers import LayerNorm

# The ops read a norm's vectors in float32, whatever the tokens are; a level of 255 would be rounded in 16 bits.
_STAY_WIDE = LayerNorm, MeanShift
_LAYER = re.compile(r"body\.(encoder|decoder)\.layers\.\d+\.")

Place = tuple[nn.Module, str]  # where a parameter is: module and name in it


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # heads and tails of other tasks have no gradient
        return tuple(_cast_all(weights, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wide = iter(_cast_all([g for g in grads if g is not None], torch.float32))
        return None, *(None if g is None else next(wide) for g in grads)


def _cast_all(tensors: Any, dtype: torch.dtype) -> list[Tensor]:
    made = [torch.empty_like(t, dtype=dtype) for t in tensors]
    torch._foreach_copy_(made, tensors)
    return made


class HalfWeights:
    """Lets a network compute with 16-bit copies of its weights while it keeps the float32 ones.

    Args:
        model: float32.
        by_layer: copy layer by layer instead of all together, so that the gradients of a layer are there as soon as
            the backward has passed it, and can be sent to other ranks.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, by_layer: bool):
        self.dtype = dtype
        groups: dict[str, list[Place]] = {}
        for prefix, module in model.named_modules():
            if not isinstance(module, _STAY_WIDE):
                layer = _LAYER.match(f"{prefix}.") if by_layer else None
                group = groups.setdefault(layer[0] if layer else "", [])
                group += [(module, name) for name, _ in module.named_parameters(recurse=False)]
        self.groups = [group for group in groups.values() if group]

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Make copies of the weights as they are now, and let the modules have them in the context."""
        places, weights, copies = [], [], []
        for group in self.groups:
            own = [module.get_parameter(name) for module, name in group]
            places += group
            weights += own
            copies += _Cast.apply(self.dtype, *own)
        try:
            for (module, name), copy in zip(places, copies, strict=True):
                module._parameters[name] = copy  # type: ignore[assignment]
            yield
        finally:
            for (module, name), weight in zip(places, weights, strict=True):
                module._parameters[name] = weight  # type: ignore[assignment]
