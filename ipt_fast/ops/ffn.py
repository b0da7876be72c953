"""The feed-forward network of a transformer block: LayerNorm, linear, activation, linear.

The hidden activation is four times as wide as a token: to keep it for the backward takes a third to a half as much
memory as all else. On CUDA bias and ReLU are the epilogue of the GEMM that makes it, which autograd cannot
differentiate; so the backward is written out here.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ipt_fast.ops._common import (
    autocast_off,
    cast,
    check_choice,
    check_number,
    check_tensor,
    check_type,
    compute_dtype,
)
from ipt_fast.ops._registry import Backend, Backends, overridable
from ipt_fast.ops.layernorm_linear import (
    NormCall,
    check_tensors,
    fake_gradients,
    gemm_backends,
    gradients,
    layernorm_linear_reference,
    norm_call,
    normalised,
    normalised_backward,
    preference,
    rows_of,
)

_OP = "ffn"
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def ffn_reference(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    eps: float = 1e-5,
    activation: str = "relu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return linear2(activation(linear1(layer_norm(x)))) by PyTorch's own functions: the GEMMs in ``dtype``."""
    hidden = layernorm_linear_reference(x, norm_weight, norm_bias, weight1, bias1, eps, dtype)  # [..., D_hidden]
    dtype = hidden.dtype
    return F.linear(_ACTIVATIONS[activation](hidden), weight2.to(dtype), cast(bias2, dtype))  # [..., D]


def hidden_activation(y: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    """Return what the activation's derivative needs, and the hidden activation, [..., D_hidden]; for ReLU one tensor.

    cublasLt's GELU epilogue is the tanh approximation, which this op does not compute.
    """
    if activation == "relu":
        if bias is None or not y.is_cuda:
            hidden = F.relu_(F.linear(y, weight, bias))
        else:
            hidden = torch._addmm_activation(bias, rows_of(y), weight.t())  # [B N, D_hidden]
            hidden = hidden.view(*y.shape[:-1], len(bias))
        return hidden, hidden
    before = F.linear(y, weight, bias)
    return before, F.gelu(before)


# Backends; the types of their arguments are those of the schema below.


def _forward_by(passes, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation, dtype, recompute):
    with autocast_off(x):
        y, *_ = normalised(passes(), x, norm_weight, norm_bias, eps, dtype)
        kept, hidden = hidden_activation(y, weight1.to(dtype), cast(bias1, dtype), activation)
        out = F.linear(hidden, weight2.to(dtype), cast(bias2, dtype)).contiguous()  # [..., D]
        return out, x.new_empty(0, dtype=dtype) if recompute else kept.contiguous()


def _backward_by(passes, grad, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, kept, eps, activation, dtype):
    with autocast_off(x):
        x = x.contiguous()
        y, mean, rstd = normalised(passes(), x, norm_weight, norm_bias, eps, dtype)
        rows = rows_of(y)  # [B N, D]
        if kept is None:
            kept, hidden = hidden_activation(rows, weight1.to(dtype), cast(bias1, dtype), activation)  # [B N, D_hidden]
        else:
            kept = rows_of(kept)
            hidden = kept if activation == "relu" else F.gelu(kept)
        grad = rows_of(grad.to(dtype))  # [B N, D]
        dweight2 = grad.t() @ hidden
        dhidden = grad @ weight2.to(dtype)  # [B N, D_hidden]
        if activation == "relu":
            dhidden, dbias1 = passes().relu_backward(dhidden, kept, x.dtype if bias1 is None else bias1.dtype)
        else:
            dhidden = torch.ops.aten.gelu_backward(dhidden, kept)
            dbias1 = dhidden.sum(0)
        dweight1, dbias2 = dhidden.t() @ rows, None if bias2 is None else grad.sum(0)
        dx, *dnorm = normalised_backward(passes(), dhidden @ weight1.to(dtype), x, mean, rstd, norm_weight, norm_bias)
        inputs = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
        return gradients(inputs, (dx, *dnorm, dweight1, dbias1, dweight2, dbias2))


def _eager(x, *args):
    with autocast_off(x):
        return ffn_reference(x, *args[:-1]), None


BACKENDS = Backends(
    _OP,
    NormCall,
    (*gemm_backends(_forward_by, _backward_by), Backend("eager", _eager)),
    preference,
)


# Dispatcher registration: to a compiler each pass is one opaque op, so that ``recompute`` holds there too.
# ``kept`` is what the backward needs of the hidden layer, [..., D_hidden]; with ``recompute`` an empty tensor.

_INPUTS = (
    "Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2"
)
_OPTIONS = "float eps, str activation, ScalarType dtype"


def _forward_fake(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation, dtype, recompute, impl):
    kept = (0,) if recompute else (*x.shape[:-1], weight1.shape[0])
    return x.new_empty(*x.shape[:-1], weight2.shape[0], dtype=dtype), x.new_empty(kept, dtype=dtype)


def _backward_fake(grad, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, kept, eps, activation, dtype, impl):
    return fake_gradients(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)


_forward = BACKENDS.define_forward(
    f"({_INPUTS}, {_OPTIONS}, bool recompute, str impl) -> (Tensor out, Tensor kept)", _forward_fake
)
_gradient = BACKENDS.define_backward(
    f"(Tensor grad, {_INPUTS}, Tensor? kept, {_OPTIONS}, str impl) -> ({', '.join(['Tensor'] * 7)})", _backward_fake
)


class _FFN(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        eps, activation, dtype, recompute, impl = inputs[7:]
        _, kept = output
        ctx.mark_non_differentiable(kept)
        ctx.save_for_backward(*inputs[:7], None if recompute else kept)
        ctx.options = (eps, activation, dtype, impl)

    @staticmethod
    def backward(ctx, grad, _):
        *inputs, kept = ctx.saved_tensors
        grads = _gradient(grad, *inputs, kept, *ctx.options)
        return *(None if t is None else g for t, g in zip(inputs, grads, strict=True)), *[None] * 5


@overridable
def ffn(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    eps: float = 1e-5,
    activation: Literal["relu", "gelu"] = "relu",
    recompute: bool = True,
    impl: str | None = None,
) -> Tensor:
    """Return ``linear2(activation(linear1(layer_norm(x))))``, keeping x and on request the hidden layer.

    The feed-forward network of a pre-norm transformer block, as Transformer Engine's ``LayerNormMLP``. Differentiable
    in all seven tensors (twice, and in forward mode, only with impl="eager").

    Args:
        x: [..., D]; float16, bfloat16, float32 or float64.
        norm_weight, norm_bias: [D] each; both None leave the LayerNorm out.
        weight1: [D_hidden, D]. bias1: [D_hidden] or None.
        weight2: [D_out, D_hidden]. bias2: [D_out] or None. All in the dtype and on the device of x.
        eps: added to the variance.
        activation: "relu", on CUDA in the epilogue of the first GEMM, or "gelu" (exact, not the tanh approximation).
        recompute: the backward recomputes the hidden activation; False saves it. "eager" is PyTorch's own autograd,
            which always saves it.
        impl: "triton" (as "fused", with one pass over memory each for norm and cast, for its gradient, and for that of
            ReLU and bias1), "fused" or "eager", see ``backend_status``; None takes ``IPT_FAST_IMPL`` or, without it,
            the first that can serve.

    Under ``torch.autocast`` the GEMMs run in the autocast dtype (float64 is left alone). The norm is computed in the
    dtype of x, with float32 statistics where x has 16 bits, under autocast too.

    Returns:
        [..., D_out] in the dtype of the GEMMs: autocast's, otherwise that of x.

    Raises:
        ValueError: shapes that do not go together, one of the norm's parameters without the other, an unknown
            activation or ``impl``.
        TypeError: tensors of different dtypes or devices, or not floating.
        RuntimeError: the backend that ``impl`` names cannot serve this call; the message says why.
    """
    for name, t in (("x", x), ("weight1", weight1), ("weight2", weight2)):
        check_tensor(_OP, name, t)
    check_choice(_OP, "activation", activation, tuple(_ACTIVATIONS))
    check_type(_OP, "recompute", recompute, bool, "True or False")
    eps = check_number(_OP, "eps", eps, least=0)
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError(f"{_OP}: needs norm_weight and norm_bias, or neither to leave the LayerNorm out (got one)")
    if x.dim() < 1 or weight1.dim() != 2 or weight2.dim() != 2:
        given = f"{list(x.shape)}, {list(weight1.shape)} and {list(weight2.shape)}"
        raise ValueError(f"{_OP}: x must be [..., D], weight1 [D_hidden, D], weight2 [D_out, D_hidden] (got {given})")
    D, hidden, D_out = x.shape[-1], weight1.shape[0], weight2.shape[0]
    shapes = {"norm_weight": (norm_weight, [D]), "norm_bias": (norm_bias, [D]), "weight1": (weight1, [hidden, D])}
    shapes |= {"bias1": (bias1, [hidden]), "weight2": (weight2, [D_out, hidden]), "bias2": (bias2, [D_out])}
    check_tensors(_OP, x, shapes)
    backend, dtype = BACKENDS.resolve(impl, norm_call(x)), compute_dtype(x)
    inputs = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    return BACKENDS.call(_FFN, backend, inputs, eps, activation, dtype, recompute)[0]


backend_status = BACKENDS.status
__all__ = ["backend_status", "ffn", "ffn_reference"]
