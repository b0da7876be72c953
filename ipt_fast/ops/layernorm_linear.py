"""LayerNorm and the linear layer that reads it, of which the backward keeps the tokens alone.

A pre-norm block keeps the normalised tokens for the gradient of the weight, one tensor as large as its input for every
projection. They are cheap to compute again; ``torch.utils.checkpoint`` would do that too, at 0.3 ms of Python a call.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipt_fast.ops._common import (
    autocast_dtype,
    autocast_off,
    cast,
    check_like,
    check_number,
    check_tensor,
    compute_dtype,
)
from ipt_fast.ops._registry import Backend, Backends, overridable

_OP = "layernorm_linear"


class DeviceCall(NamedTuple):
    """What the choice of a backend depends on."""

    device: str


def layernorm_linear_reference(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return linear(layer_norm(x)) by PyTorch's own functions: the norm in the dtype of x, the GEMM in ``dtype``."""
    y, dtype = x, dtype or x.dtype
    if norm_weight is not None:  # always, but for ``ffn``
        y = F.layer_norm(x, x.shape[-1:], norm_weight.to(x.dtype), cast(norm_bias, x.dtype), eps)  # [..., D]
    return F.linear(y.to(dtype), weight.to(dtype), cast(bias, dtype))  # [..., D_out]


# What ``ffn`` shares. Autocast is off where these are called.


def rows_of(x: Tensor) -> Tensor:
    """Return [..., D] as [B N, D]; -1 would not do where D is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple:
    """Return layer_norm(x) in the dtype of x [..., D], with the mean and 1 / standard deviation of each token.

    Statistics are float32 for 16-bit tokens. Autocast on CUDA would make a 16-bit x float32 and cast what comes out
    back for the GEMM behind it: ten passes over 16-bit memory where two do. Without weight and bias, x itself.
    """
    if weight is None or bias is None:
        return x, None, None
    return torch.native_layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def normalise_backward(grad, x, mean, rstd, weight, bias) -> tuple:
    """Return the gradients of x, weight and bias; ``grad`` is that of the normalised tokens, any dtype and shape."""
    grad = grad.view_as(x).to(x.dtype)
    if weight is None:
        return grad, None, None
    affine = weight.to(x.dtype), bias.to(x.dtype)
    return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, *affine, [True] * 3)


def gradients(inputs: Sequence, grads: Sequence) -> tuple[Tensor, ...]:
    """Return what a backward gives: each gradient in the dtype of its input, empty where that is None."""
    return tuple(inputs[0].new_empty(0) if t is None else g.to(t.dtype) for t, g in zip(inputs, grads, strict=True))


def fake_gradients(*inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Return what stands for them while a compiler traces."""
    return gradients(inputs, [None if t is None else t.new_empty(t.shape) for t in inputs])


def check_tensors(op: str, x: Tensor, shapes: dict[str, tuple[Tensor | None, list[int]]]) -> None:
    """Refuse shapes, dtypes and devices that do not go with x; ``shapes``: name -> (tensor, the shape it needs).

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong dtype or device. Under autocast every floating dtype goes.
    """
    mixed = autocast_dtype(x.device.type) is not None
    for name, (t, shape) in shapes.items():
        if t is None:
            continue
        check_tensor(op, name, t)
        if list(t.shape) != shape:
            raise ValueError(f"{op}: {name} must be {shape} to go with x {list(x.shape)} (got {list(t.shape)})")
        # A norm's parameters may be wider than 16-bit tokens: they are cast, as PyTorch's mixed LayerNorm takes them.
        free = mixed or (name.startswith("norm_") and x.dtype != torch.float64)
        check_like(op, name, t, "x", x, free)


def fused_unsupported(call: DeviceCall) -> str | None:
    """Return why the fused backends cannot serve a call on that device, or None."""
    device = torch.device(call.device).type
    return None if device in ("cpu", "cuda", "meta") else f"serves CPU and CUDA tensors (found {device})"


# Backends; the types of their arguments are those of the schema below.


def _fused(x, norm_weight, norm_bias, weight, bias, eps, dtype):
    with autocast_off(x):
        y, *_ = normalise(x, norm_weight, norm_bias, eps)  # [..., D]
        return F.linear(y.to(dtype), weight.to(dtype), cast(bias, dtype)).contiguous()  # [..., D_out]


def _fused_backward(grad, x, norm_weight, norm_bias, weight, bias, eps, dtype):
    with autocast_off(x):
        x = x.contiguous()
        y, mean, rstd = normalise(x, norm_weight, norm_bias, eps)
        rows = rows_of(grad.to(dtype))  # [B N, D_out]
        dweight = rows.t() @ rows_of(y.to(dtype))
        dx, *dnorm = normalise_backward(rows @ weight.to(dtype), x, mean, rstd, norm_weight, norm_bias)
        return gradients((x, norm_weight, norm_bias, weight, bias), (dx, *dnorm, dweight, rows.sum(0)))


def _eager(x, *args):
    with autocast_off(x):
        return layernorm_linear_reference(x, *args)


BACKENDS = Backends(
    _OP,
    DeviceCall,
    (Backend("fused", _fused, _fused_backward, fused_unsupported), Backend("eager", _eager)),
    lambda call: ("fused", "eager"),
)


# Dispatcher registration: to a compiler each pass is one opaque op.

_INPUTS = "Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor? bias, float eps, ScalarType dtype"


def _forward_fake(x, norm_weight, norm_bias, weight, bias, eps, dtype, impl):
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype)


def _backward_fake(grad, x, norm_weight, norm_bias, weight, bias, eps, dtype, impl):
    return fake_gradients(x, norm_weight, norm_bias, weight, bias)


_forward = BACKENDS.define_forward(f"({_INPUTS}, str impl) -> Tensor", _forward_fake)
_gradient = BACKENDS.define_backward(
    f"(Tensor grad, {_INPUTS}, str impl) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _backward_fake
)


class _LayerNormLinear(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.options, ctx.no_bias = inputs[5:], inputs[4] is None

    @staticmethod
    def backward(ctx, grad):
        *grads, dbias = _gradient(grad, *ctx.saved_tensors, *ctx.options)
        return *grads, None if ctx.no_bias else dbias, None, None, None


@overridable
def layernorm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    impl: str | None = None,
) -> Tensor:
    """Return ``linear(layer_norm(x), weight, bias)``, keeping x alone for the backward.

    The q, k, v projection of a pre-norm transformer block, as Transformer Engine's ``LayerNormLinear``. The backward
    normalises x again. Differentiable in all five tensors (twice, and in forward mode, only with impl="eager").

    Args:
        x: [..., D]; float16, bfloat16, float32 or float64.
        norm_weight: [D]. norm_bias: [D]. The affine part of the norm.
        weight: [D_out, D]. bias: [D_out] or None. Dtype and device of x.
        eps: added to the variance.
        impl: "fused" or "eager" (PyTorch's own autograd, which keeps the normalised tokens), see ``backend_status``;
            None takes ``IPT_FAST_IMPL`` or, without it, the first that can serve.

    Under ``torch.autocast`` the GEMM runs in the autocast dtype (float64 is left alone). The norm is computed in the
    dtype of x, with float32 statistics where x has 16 bits, under autocast too.

    Returns:
        [..., D_out] in the dtype of the GEMM: autocast's, otherwise that of x.

    Raises:
        ValueError: shapes that do not go together, an unknown ``impl``.
        TypeError: tensors of different dtypes or devices, or not floating.
        RuntimeError: the backend that ``impl`` names cannot serve this call; the message says why.
    """
    for name, t in (("x", x), ("norm_weight", norm_weight), ("norm_bias", norm_bias), ("weight", weight)):
        check_tensor(_OP, name, t)
    eps = check_number(_OP, "eps", eps, least=0)
    if x.dim() < 1 or weight.dim() != 2:
        raise ValueError(
            f"{_OP}: x must be [..., D] and weight [D_out, D] (got {list(x.shape)} and {list(weight.shape)})"
        )
    D, D_out = x.shape[-1], weight.shape[0]
    norm = {"norm_weight": (norm_weight, [D]), "norm_bias": (norm_bias, [D])}
    check_tensors(_OP, x, {**norm, "weight": (weight, [D_out, D]), "bias": (bias, [D_out])})
    backend, dtype = BACKENDS.resolve(impl, DeviceCall(x.device.type)), compute_dtype(x)
    return BACKENDS.call(_LayerNormLinear, backend, (x, norm_weight, norm_bias, weight, bias), eps, dtype)


backend_status = BACKENDS.status
__all__ = ["backend_status", "layernorm_linear", "layernorm_linear_reference"]
