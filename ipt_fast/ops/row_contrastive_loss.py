"""Contrastive losses between the rows of two matrices: the softmax loss of CLIP and the sigmoid loss of SigLIP."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipt_fast.ops._common import autocast_off, check_choice, check_like, check_number, check_tensor
from ipt_fast.ops._contrastive_ranks import Remote, ranks_in_scope
from ipt_fast.ops._registry import Backend, Backends, overridable, triton_missing
from ipt_fast.ops._row_contrastive_loss_gemm import (
    gemm_backward,
    gemm_forward,
    new_kept,
    torch_passes,
    triton_passes,
)

_OP = "row_contrastive_loss"


class _Call(NamedTuple):
    """A call, as far as it decides about backends; dtype is judged where given."""

    device: str
    dtype: torch.dtype | None = None


def row_contrastive_loss_reference(
    x: Tensor,
    y: Tensor,
    scale: Tensor | float,
    bias: Tensor | float = 0.0,
    mode: str = "softmax",
    others: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return values per pair [B], written as the papers' equations read; the oracle of every backend.

    ``others`` are rows of x and of y [K, D] that serve as negatives alone (other ranks' rows).
    """
    all_x, all_y = (x, y) if others is None else (torch.cat([x, others[0]]), torch.cat([y, others[1]]))
    by_row = scale * (x @ all_y.T) + bias  # [B, B + K]
    if mode == "sigmoid":
        same_pair = torch.eye(*by_row.shape, dtype=torch.bool, device=x.device)
        return -F.logsigmoid(torch.where(same_pair, by_row, -by_row)).sum(1)
    by_column = scale * (all_x @ y.T) + bias  # [B + K, B]
    return -(by_row.log_softmax(1).diagonal() + by_column.log_softmax(0).diagonal()) / 2


# Backends. "eager" gives values per pair [B]; the other also what its backward needs of the logits' rows and columns.


def _eager(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, mode: str, scope: str) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    x, y, scale, bias = (t.to(wide) for t in (x, y, scale, bias))
    others = (Remote.apply(x), Remote.apply(y)) if ranks_in_scope(scope) > 1 else None  # [(R - 1) B, D]
    with autocast_off(x):
        return row_contrastive_loss_reference(x, y, scale, bias, mode, others)


def _triton_reason(call: _Call) -> str | None:
    if reason := triton_missing(call.device, least=(7, 0)):  # its kernels have no tensor-core products
        return reason
    return "has no float64 kernel" if call.dtype == torch.float64 else None


def _preference(call: _Call) -> list[str]:
    on_gpu = torch.device(call.device).type == "cuda"  # elsewhere Triton is its interpreter
    return ["triton", "gemm", "eager"] if on_gpu else ["gemm", "triton", "eager"]


BACKENDS = Backends(
    _OP,
    _Call,
    (
        Backend("gemm", partial(gemm_forward, torch_passes), partial(gemm_backward, torch_passes)),
        Backend("triton", partial(gemm_forward, triton_passes), partial(gemm_backward, triton_passes), _triton_reason),
        Backend("eager", _eager),
    ),
    _preference,
)


# Dispatcher registration. Ranks exchange rows inside the ops: to a compiler scope "global" is one op, too.

_INPUTS = "Tensor x, Tensor y, Tensor scale, Tensor bias"


def _forward_fake(x, y, scale, bias, mode, scope, impl):
    return new_kept(x, mode), x.new_empty(len(x), dtype=torch.promote_types(x.dtype, torch.float32))


def _backward_fake(x, y, scale, bias, kept, weights, mode, scope, impl):
    return tuple(t.new_empty(t.shape) for t in (x, y, scale, bias))


_forward = BACKENDS.define_forward(
    f"({_INPUTS}, str mode, str scope, str impl) -> (Tensor kept, Tensor values)", _forward_fake
)
_gradient = BACKENDS.define_backward(
    f"({_INPUTS}, Tensor kept, Tensor weights, str mode, str scope, str impl) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
)


class _RowContrastiveLoss(torch.autograd.Function):
    """Saves the rows, scale, bias and four numbers a pair."""

    generate_vmap_rule = True
    forward = staticmethod(_forward)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.options = inputs[4:]
        ctx.save_for_backward(*inputs[:4], output[0])
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)  # no zeros for it

    @staticmethod
    def backward(ctx, _, weights):
        if weights is None:  # nobody asked the loss for its gradient
            return (None,) * 7
        return *_gradient(*ctx.saved_tensors, weights, *ctx.options), None, None, None


@overridable
def row_contrastive_loss(
    x: Tensor,
    y: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    mode: str = "softmax",
    reduction: str = "mean",
    scope: str = "local",
    impl: str | None = None,
) -> Tensor:
    """Compute a loss in which row i of x and row i of y attract each other, and all other pairs of rows repel.

    With the logits ``l[i, j] = scale * dot(x[i], y[j]) + bias``, ``mode="softmax"`` is the loss of CLIP (Radford et
    al., arXiv:2103.00020), the mean of the cross entropies of the logits' rows and columns, the diagonal as target::

        1/(2 B) * sum_i [ log sum_j exp l[i, j] - l[i, i]  +  log sum_j exp l[j, i] - l[i, i] ]

    and ``mode="sigmoid"`` that of SigLIP (Zhai et al., arXiv:2303.15343), with z[i, i] = 1 and otherwise -1::

        -1/B * sum_{i, j} log sigmoid(z[i, j] * l[i, j])

    Differentiable in x, y, scale and bias (twice, and in forward mode, only with impl="eager"). Rows are taken as they
    come: normalise them before, as both papers do (``torch.nn.functional.normalize``).

    Args:
        x, y: [B, D] each, float16, bfloat16, float32 or float64, any strides, on one device; of two dtypes the wider
            one counts. A nan, an inf or a logit that overflows makes the loss nan or inf.
        scale: what multiplies the cosines, 1 / temperature, a number or a tensor of one element, any floating dtype:
            ``logit_scale.exp()`` of CLIP and SigLIP.
        bias: added to the logits in mode "sigmoid", likewise; None for none. The softmax does not change with it.
        mode: "softmax" or "sigmoid".
        reduction: "none" gives the values per pair [B]: of the softmax half the sum of the two cross entropies, of the
            sigmoid the sum over x[i] with every y[j]. "mean" (the papers') and "sum" are taken over the pairs.
        scope: "local" takes the negatives from this process's rows, "global" from all ranks' rows, which must have the
            same shape. The positives are always the own pairs, so "mean" is this rank's share: the mean over ranks is
            the loss of one process that holds all rows, and gradients, of scale and bias as well, averaged over ranks,
            as DistributedDataParallel does, are those of that one process. Without a process group the two are the
            same. Every rank must call forward and backward. "eager" gathers rows, the others pass them round a ring.
        impl: "triton" (tiles of logits, in memory proportional to B; GEMMs of the vendor's, and one pass over a tile
            between them), "gemm" (the same in plain PyTorch, on any device) or "eager" (the whole matrix of logits,
            several times), see ``backend_status``; None takes ``IPT_FAST_IMPL`` or, without it, the first that can
            serve. The tiles give the same bits each time.

    Under ``torch.autocast`` nothing changes.

    Returns:
        A scalar, or [B] for "none"; float32 for half precisions, otherwise the dtype of x and y.

    Raises:
        ValueError: shapes that do not go together, no rows, an unknown name, a bias with the softmax.
        TypeError: tensors that are not floating or on two devices, or another argument has a wrong type.
        RuntimeError: the backend asked for cannot serve the call.
    """
    _check(x, y, bias, mode, reduction, scope)
    scale = _one_number("scale", scale, x)
    bias = _one_number("bias", 0.0 if bias is None else bias, x)
    dtype = torch.promote_types(x.dtype, y.dtype)
    tensors = [t.resolve_neg() for t in (x.to(dtype), y.to(dtype), scale, bias)]
    backend = BACKENDS.resolve(impl, _Call(str(x.device), dtype))
    values = BACKENDS.call(_RowContrastiveLoss, backend, tensors, mode, scope)
    values = values if backend.backward is None else values[1]  # [B]
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def _one_number(name: str, value: Tensor | float, x: Tensor) -> Tensor:
    """Return ``value`` as a tensor [] on the device of x."""
    if not isinstance(value, Tensor):
        if not isinstance(value, (int, float)):
            raise TypeError(f"{_OP}: {name} must be a number or a tensor of one element (got {type(value).__name__})")
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.new_full((), check_number(_OP, name, value), dtype=wide)
    check_tensor(_OP, name, value, shape="of one element")
    check_like(_OP, name, value, "x", x, any_dtype=True)
    if value.numel() != 1:
        raise ValueError(f"{_OP}: {name} must have one element (got shape {list(value.shape)})")
    return value.reshape(())


def _check(x: Tensor, y: Tensor, bias: Tensor | float | None, mode: str, reduction: str, scope: str) -> None:
    for name, t in (("x", x), ("y", y)):
        check_tensor(_OP, name, t, shape="[B, D]")
    check_like(_OP, "y", y, "x", x, any_dtype=True)
    check_choice(_OP, "mode", mode, ("softmax", "sigmoid"))
    check_choice(_OP, "reduction", reduction, ("mean", "sum", "none"))
    check_choice(_OP, "scope", scope, ("local", "global"))
    if x.dim() != 2 or x.shape != y.shape:
        raise ValueError(f"{_OP}: x and y must both be [B, D] (got {list(x.shape)} and {list(y.shape)})")
    if 0 in x.shape:
        raise ValueError(f"{_OP}: x and y need at least one row of one feature (got {list(x.shape)})")
    if mode == "softmax" and bias is not None:
        raise ValueError(f'{_OP}: the softmax does not change with a bias; leave it out or use mode="sigmoid"')


backend_status = BACKENDS.status
__all__ = ["backend_status", "row_contrastive_loss", "row_contrastive_loss_reference"]
