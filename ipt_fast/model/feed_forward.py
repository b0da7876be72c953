"""The feed-forward network of a layer. Of it the backward needs the tokens, and the hidden layer or the time to make it
again.

The hidden layer is four times as wide as a token: to keep it takes a third to a half as much memory as all else.
On CUDA bias and ReLU are the epilogue of the product that makes it, which autograd does not know; so the backward is
written out here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ipt_fast.model.norm import compute_dtype, is_plain_norm, normalise, normalise_backward
from ipt_fast.model.packed_linear import forget, is_plain, linear
from ipt_fast.ops._common import any_requires_grad


def feed_forward(
    x: Tensor, norm: nn.Module | None, linear1: nn.Module, linear2: nn.Module, recompute: bool = True
) -> Tensor:
    """linear2(relu(linear1(norm(x)))); x [B, N, D] -> [B, N, D] in the dtype of products.

    Args:
        recompute: the backward makes the hidden layer again; else it is kept for it.
    """
    # A compiler decides itself what to keep and what to fuse; modules that somebody put there or hooked are called.
    if torch.compiler.is_compiling() or x.is_meta or not _ours(norm, linear1, linear2):
        return linear2(F.relu_(linear1(x if norm is None else norm(x))))
    assert isinstance(linear1, nn.Linear) and isinstance(linear2, nn.Linear)
    parameters = (linear1.weight, linear1.bias, linear2.weight, linear2.bias)
    if any_requires_grad((x, *parameters)):
        forget(linear1.weight, linear2.weight)
        scale = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
        return _FeedForward.apply(x, *scale, *parameters, recompute)
    y = x if norm is None else norm(x)
    hidden = _hidden(y, *parameters[:2]) if _has_epilogue(y) else linear(y, *parameters[:2], relu=True)
    return linear(hidden, *parameters[2:])


def _ours(norm: nn.Module | None, linear1: nn.Module, linear2: nn.Module) -> bool:
    return (norm is None or is_plain_norm(norm)) and is_plain(linear1) and is_plain(linear2)


def _has_epilogue(x: Tensor) -> bool:
    return x.is_cuda


def _hidden(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(y W^T + b), [B, N, 4 D]."""
    if not _has_epilogue(y):
        return F.relu_(F.linear(y, weight, bias))
    dtype = compute_dtype(y)
    rows = y.to(dtype).flatten(0, -2)  # [B N, D]
    return torch._addmm_activation(bias.to(dtype), rows, weight.to(dtype).t()).unflatten(0, y.shape[:-1])


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, eps, w1, b1, w2, b2, recompute):
        ctx.eps, ctx.dtype = eps, compute_dtype(x)
        y, *_ = _normed(x, norm_weight, norm_bias, eps)
        hidden = _hidden(y, w1, b1)  # [B, N, 4 D]
        ctx.save_for_backward(x, norm_weight, norm_bias, w1, b1, w2, None if recompute else hidden)
        return F.linear(hidden, w2, b2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, norm_weight, norm_bias, w1, b1, w2, hidden = ctx.saved_tensors
        w1, b1, w2 = (t.to(ctx.dtype) for t in (w1, b1, w2))
        with torch.autocast(x.device.type, enabled=False):
            y, mean, rstd = _normed(x, norm_weight, norm_bias, ctx.eps)
            rows = y.to(ctx.dtype).flatten(0, -2)  # [B N, D]
            hidden = _hidden(rows, w1, b1) if hidden is None else hidden.flatten(0, -2)  # [B N, 4 D]
            grad = grad.to(ctx.dtype).flatten(0, -2)  # [B N, D]
            dw2, db2 = grad.t() @ hidden, grad.sum(0)
            dhidden = torch.ops.aten.threshold_backward(grad @ w2, hidden, 0)
            dw1, db1 = dhidden.t() @ rows, dhidden.sum(0)
            dx, dnorm_weight, dnorm_bias = (dhidden @ w1).view_as(x).to(x.dtype), None, None
            if norm_weight is not None:
                dx, dnorm_weight, dnorm_bias = normalise_backward(dx, x, mean, rstd, norm_weight, norm_bias)
        return dx, dnorm_weight, dnorm_bias, None, dw1, db1, dw2, db2, None


def _normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
    """norm(x) with its mean and 1 / standard deviation; x itself where there is no norm."""
    return (x, None, None) if weight is None or bias is None else normalise(x, weight, bias, eps)
