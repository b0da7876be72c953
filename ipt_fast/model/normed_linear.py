"""A product with normalised tokens, of which the backward keeps the tokens alone and normalises them again.

``torch.utils.checkpoint`` would do that too, at 0.3 ms of Python a call: 10 ms in a step of the largest preset.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ipt_fast.model.norm import compute_dtype, is_plain_norm, normalise, normalise_backward
from ipt_fast.model.packed_linear import forget, linear
from ipt_fast.ops._common import any_requires_grad


def normed_linear(x: Tensor, norm: nn.Module, weight: Tensor) -> Tensor:
    """norm(x) W^T: [B, N, D] -> [B, N, D_out] in the dtype of products."""
    learns = any_requires_grad((x, weight, *norm.parameters()))
    # A compiler decides itself what to keep; modules that somebody put there or hooked are called.
    if not learns or torch.compiler.is_compiling() or x.is_meta or not is_plain_norm(norm):
        return linear(norm(x), weight)
    assert isinstance(norm, nn.LayerNorm)
    forget(weight)
    return _NormedLinear.apply(x, norm.weight, norm.bias, norm.eps, weight)


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, eps, weight):
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        ctx.eps, ctx.dtype = eps, compute_dtype(x)
        y, *_ = normalise(x, norm_weight, norm_bias, eps)
        return F.linear(y, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, norm_weight, norm_bias, weight = ctx.saved_tensors
        weight = weight.to(ctx.dtype)
        with torch.autocast(x.device.type, enabled=False):
            y, mean, rstd = normalise(x, norm_weight, norm_bias, ctx.eps)
            grad = grad.to(ctx.dtype).flatten(0, -2)  # [B N, D_out]
            dweight = grad.t() @ y.to(ctx.dtype).flatten(0, -2)
            dx, *dnorm = normalise_backward(grad @ weight, x, mean, rstd, norm_weight, norm_bias)
        return dx, *dnorm, None, dweight
