"""LayerNorm and the linear layer that reads it, of which the backward keeps the tokens alone.

A pre-norm block keeps the normalised tokens for the gradient of the weight, one tensor as large as its input for every
projection. They are cheap to compute again; ``torch.utils.checkpoint`` would do that too, at 0.3 ms of Python a call.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
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
from ipt_fast.ops._registry import Backend, Backends, overridable, triton_missing

_OP = "layernorm_linear"
_WIDEST = 4096  # features of a token that the Triton kernels hold on chip


class NormCall(NamedTuple):
    """What the choice of a backend depends on; dtype is judged where given."""

    device: str
    dtype: torch.dtype | None = None
    features: int = 1  # of a token


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


def norm_call(x: Tensor) -> NormCall:
    """Describe a call with tokens x [..., D]."""
    return NormCall(str(x.device), x.dtype, operator.index(x.shape[-1]))


class Passes(NamedTuple):
    """What a backend does between the GEMMs, in passes over memory.

    normalise: (x, weight, bias, eps, dtype) -> layer_norm(x) in ``dtype``, and what its backward needs of mean and
        deviation.
    normalise_backward: (gradient of that, x, mean, rstd, weight, bias) -> the gradients of x, weight and bias.
    add_and_normalise: (x, branch, weight, bias, eps) -> x + branch, and what ``normalise`` makes of it.
    normalise_backward_add: as ``normalise_backward``, with a gradient that has gone past the norm last; it is added to
        that of x, and its sum over rows comes last.
    relu_backward: (gradient [rows, columns] of relu(h + bias), that activation, dtype) -> gradients of h and, in
        ``dtype``, of bias.
    """

    normalise: Callable
    normalise_backward: Callable
    add_and_normalise: Callable
    normalise_backward_add: Callable
    relu_backward: Callable


def _normalise(x, weight, bias, eps, dtype):
    """Statistics are float32 for 16-bit tokens.

    Autocast on CUDA would make a 16-bit x float32 and cast what comes out back for the GEMM behind it: ten passes over
    16-bit memory where two do.
    """
    y, *statistics = torch.native_layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)
    return y.to(dtype), *statistics


def _normalise_backward(grad, x, mean, rstd, weight, bias):
    affine = weight.to(x.dtype), bias.to(x.dtype)
    grad = grad.view_as(x).to(x.dtype)
    return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, rstd, *affine, [True] * 3)


def _add_and_normalise(x, branch, weight, bias, eps):
    x = x + branch
    return x, *_normalise(x, weight, bias, eps, x.dtype)


def _normalise_backward_add(grad, x, mean, rstd, weight, bias, past):
    dx, *daffine = _normalise_backward(grad, x, mean, rstd, weight, bias)
    return dx.add_(past), *daffine, rows_of(past).sum(0)


def _relu_backward(grad, hidden, dtype):
    grad = torch.ops.aten.threshold_backward(grad, hidden, 0)
    return grad, grad.sum(0).to(dtype)


TORCH = Passes(_normalise, _normalise_backward, _add_and_normalise, _normalise_backward_add, _relu_backward)


def triton_passes() -> Passes:
    """Return the Triton kernels' passes, which read and write each tensor once and cast on the way."""
    from ipt_fast.kernels import norm_passes as kernels

    return Passes(
        kernels.normalise,
        lambda *args: kernels.normalise_backward(*args[:-1]),  # without the bias
        kernels.add_and_normalise,
        lambda grad, x, mean, rstd, weight, bias, past: kernels.normalise_backward_add(
            grad, x, mean, rstd, weight, past
        ),
        kernels.relu_backward,
    )


PASSES: dict[str, Callable[[], Passes]] = {"fused": lambda: TORCH, "triton": triton_passes}


def normalised(passes: Passes, x, weight, bias, eps, dtype) -> tuple:
    """Return layer_norm(x) in ``dtype`` [..., D], without weight and bias x itself, and each token's statistics."""
    return (x.to(dtype), None, None) if weight is None else passes.normalise(x, weight, bias, eps, dtype)


def normalised_backward(passes: Passes, grad, x, mean, rstd, weight, bias) -> tuple:
    """Return the gradients of x, weight and bias; ``grad`` is that of ``normalised``, any shape."""
    if weight is None:
        return grad.view_as(x), None, None
    return passes.normalise_backward(grad, x, mean, rstd, weight, bias)


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


def fused_unsupported(call: NormCall) -> str | None:
    """Return why the fused backends cannot serve a call on that device, or None."""
    device = torch.device(call.device).type
    return None if device in ("cpu", "cuda", "meta") else f"serves CPU and CUDA tensors (found {device})"


def triton_unsupported(call: NormCall) -> str | None:
    """Return why the Triton kernels, which have no tensor-core products, cannot serve a call, or None."""
    if reason := triton_missing(call.device, least=(7, 0)):
        return reason
    if call.dtype == torch.float64:
        return "has no float64 kernel"
    return None if 1 <= call.features <= _WIDEST else f"takes 1 to {_WIDEST} features a token (got {call.features})"


def preference(call: NormCall) -> list[str]:
    """Return the backends, best first; on a CPU Triton is its interpreter."""
    on_gpu = torch.device(call.device).type == "cuda"
    return ["triton", "fused", "eager"] if on_gpu else ["fused", "triton", "eager"]


def gemm_backends(forward: Callable, backward: Callable) -> tuple[Backend, Backend]:
    """Return "fused" and "triton": the launchers, which take a function that returns ``Passes`` first, with each's."""
    reasons = {"fused": fused_unsupported, "triton": triton_unsupported}
    fused, triton = (
        Backend(name, partial(forward, way), partial(backward, way), reasons[name]) for name, way in PASSES.items()
    )
    return fused, triton


# Backends; the types of their arguments are those of the schema below.


def _forward_by(passes, x, norm_weight, norm_bias, weight, bias, eps, dtype):
    with autocast_off(x):
        y, *_ = normalised(passes(), x, norm_weight, norm_bias, eps, dtype)  # [..., D]
        return F.linear(y, weight.to(dtype), cast(bias, dtype)).contiguous()  # [..., D_out]


def _backward_by(passes, grad, x, norm_weight, norm_bias, weight, bias, eps, dtype):
    with autocast_off(x):
        x = x.contiguous()
        y, mean, rstd = normalised(passes(), x, norm_weight, norm_bias, eps, dtype)
        rows = rows_of(grad.to(dtype))  # [B N, D_out]
        dweight = rows.t() @ rows_of(y)
        dx, *dnorm = normalised_backward(passes(), rows @ weight.to(dtype), x, mean, rstd, norm_weight, norm_bias)
        dbias = None if bias is None else rows.sum(0)
        return gradients((x, norm_weight, norm_bias, weight, bias), (dx, *dnorm, dweight, dbias))


def _eager(x, *args):
    with autocast_off(x):
        return layernorm_linear_reference(x, *args)


BACKENDS = Backends(
    _OP,
    NormCall,
    (*gemm_backends(_forward_by, _backward_by), Backend("eager", _eager)),
    preference,
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
        impl: "triton" (fused, with one pass over memory each for norm and cast, and for its gradient), "fused" or
            "eager" (PyTorch's own autograd, which keeps the normalised tokens), see ``backend_status``; None takes
            ``IPT_FAST_IMPL`` or, without it, the first that can serve.

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
    backend, dtype = BACKENDS.resolve(impl, norm_call(x)), compute_dtype(x)
    return BACKENDS.call(_LayerNormLinear, backend, (x, norm_weight, norm_bias, weight, bias), eps, dtype)


backend_status = BACKENDS.status
__all__ = ["backend_status", "layernorm_linear", "layernorm_linear_reference"]
