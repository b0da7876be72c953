"""LayerNorm in the dtype of the tokens, and what that is under autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def product_dtype(x: Tensor) -> torch.dtype:
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
