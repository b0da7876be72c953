"""LayerNorm in the dtype of the tokens, and what that is under autocast; its parts, for a backward written out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.acceleration._hooks import reason_not_fusable


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype of products with x: autocast's where it is on, otherwise that of x."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and x.dtype != torch.float64 else x.dtype


class LayerNorm(nn.LayerNorm):
    """Statistics in float32, the result in the dtype of x.

    Autocast on CUDA would make a 16-bit x float32 and cast what comes out back for the product behind it: ten passes
    over 16-bit memory where two do.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        if x.dtype not in (torch.float16, torch.bfloat16) or x.is_meta:
            return super().forward(x)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def is_plain_norm(norm: nn.Module) -> bool:
    """Whether ``normalise`` may stand for a module: a LayerNorm of ours that nobody has replaced or hooked."""
    return type(norm) is LayerNorm and reason_not_fusable(norm) is None


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What ``LayerNorm`` gives for x [..., D], with the mean and 1 / standard deviation of each token."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.native_layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def normalise_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; ``grad`` is that of the normalised tokens, in any dtype and shape."""
    return torch.ops.aten.native_layer_norm_backward(
        grad.view_as(x).to(x.dtype), x, x.shape[-1:], mean, rstd, weight.to(x.dtype), bias.to(x.dtype), [True] * 3
    )
