"""Training's form of a layer: the same operations, with gradients that take no pass over memory to be put together.

A layer is two or three branches off a stream of tokens, x += branch(norm(x)). Differentiated one operation after the
other, each branch costs a pass to add its output to the stream, one to add its gradient to the stream's, and copies
that join the gradients of q, k and v, and of the parts of a weight. Here a branch hands the stream on with its output
not yet added: the norm of the next one adds it, and goes back with the stream's gradient added.

``way`` says where this is possible; elsewhere the layers compute as they read (``layers.py``).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from ipt_fast.ops._common import autocast_dtype, forward_mode
from ipt_fast.ops.ffn import BACKENDS as FFN
from ipt_fast.ops.ffn import hidden_activation
from ipt_fast.ops.layernorm_linear import BACKENDS as LINEAR
from ipt_fast.ops.layernorm_linear import PASSES, Passes, norm_call, rows_of
from ipt_fast.ops.patch_attention import attention, attention_backward, backend_with_backward


class Way(NamedTuple):
    """How the branches compute: passes over memory, the attention's backend, whether the backward normalises again."""

    passes: Passes
    attention: str
    recompute: bool


def records(x: Tensor) -> bool:
    """Return whether autograd records what is done with x [B, N, D]: under no transform, compiler, tracer, autocast."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch.jit.is_tracing() or forward_mode():
        return False
    plain = isinstance(x, Tensor) and len(x) > 0 and not torch._C._are_functorch_transforms_active()
    return plain and autocast_dtype(x.device.type) is None


def way(x: Tensor, num_heads: int, recompute: bool, *weights: Tensor) -> Way | None:
    """Return how a layer that reads x is to be trained by branches, or None where its ops are differentiated alone."""
    if any(weight.dtype != x.dtype for weight in weights):
        return None
    names = {backends.resolve(None, norm_call(x)).name for backends in (LINEAR, FFN)}
    attention = backend_with_backward(x, num_heads)
    if len(names) > 1 or not names <= PASSES.keys() or attention is None:
        return None
    return Way(PASSES[names.pop()](), attention, recompute)


def is_called_by_nobody_else(*modules: nn.Module) -> bool:
    """Return whether no hook waits for a call of these modules, which are passed over, and none is compiled."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")
    return not (_has_any_global_hook() or any(getattr(module, kind) for module in modules for kind in hooks))


def _enter(way: Way, x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple:
    """Return the stream x + branch, norm(x + branch) and what the norm's backward needs, all [B, N, D]."""
    if branch is None:
        return x, *way.passes.normalise(x, weight, bias, eps, x.dtype)
    return way.passes.add_and_normalise(x, branch, weight, bias, eps)


class _NormedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, way, eps, num_heads, x, branch, norm_weight, norm_bias, weight, embed, E, memory):
        D = x.shape[-1]
        x, *normed = _enter(way, x, branch, norm_weight, norm_bias, eps)
        if memory is None:
            q, k, v = F.linear(normed[0], weight).chunk(3, dim=-1)  # views of [B, N, 3D]
        else:
            q = F.linear(normed[0], weight[:D])  # [B, N, D]
            k, v = F.linear(memory, weight[D:]).chunk(2, dim=-1)  # views of [B, M, 2D]
        ctx.way, ctx.eps, ctx.branched = way, eps, branch is not None
        ctx.options = num_heads, 1.0 / math.sqrt(D // num_heads), way.attention
        out, lse = attention(q, k, v, *_embeds(embed, D), *ctx.options)
        kept = () if way.recompute else normed
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, embed, E, memory, q, k, v, out, lse, *kept)
        ctx.set_materialize_grads(False)  # the last layer's memory has none
        return x, out, memory

    @staticmethod
    @once_differentiable
    def backward(ctx, past, grad, dmemory):
        x, norm_weight, norm_bias, weight, embed, E, memory, q, k, v, out, lse, *kept = ctx.saved_tensors
        D, passes = x.shape[-1], ctx.way.passes
        past, grad = (torch.zeros_like(x) if g is None else g for g in (past, grad))
        dq, dkv = attention_backward(grad, q, k, v, *_embeds(embed, D), out, lse, *ctx.options)
        if memory is not None and dkv.numel() == 0:  # N == M: packed [B, N, 3D]
            dq, dkv = dq.split([D, 2 * D], dim=-1)
        y, mean, rstd = kept or passes.normalise(x, norm_weight, norm_bias, ctx.eps, x.dtype)
        rows, own = rows_of(dq), dq.shape[-1]  # [B N, 3D], with a memory [B N, D]
        dweight = torch.empty_like(weight)
        torch.mm(rows.t(), rows_of(y), out=dweight[:own])
        dembed = None
        if memory is not None:
            dkv = rows_of(dkv)  # [B M, 2D]
            torch.mm(dkv.t(), rows_of(memory), out=dweight[D:])
            if dmemory is None:
                dmemory = (dkv @ weight[D:]).view_as(memory)
            else:  # made by a later layer's backward and handed to this one alone: the GEMM adds to it in place
                dmemory.view(-1, D).addmm_(dkv, weight[D:])
        if embed is not None:  # the weight has made it of E; ``project`` gives E its gradient, not the weight
            embedded = embed.shape[-1]
            dembed = dq[..., :embedded].sum(0)  # one embedding serves the whole batch
            dweight[:embedded].addmm_(dembed.t(), E)
        grad = rows @ weight[:own]
        dx, dgain, dbias, _ = passes.normalise_backward_add(grad, x, mean, rstd, norm_weight, norm_bias, past)
        dnorm = dgain.to(norm_weight.dtype), dbias.to(norm_bias.dtype)
        return None, None, None, dx, dx if ctx.branched else None, *dnorm, dweight, dembed, None, dmemory


def _embeds(embed: Tensor | None, D: int) -> tuple[Tensor | None, Tensor | None]:
    """Return what is added to q and to k: [N, D] each, or None."""
    if embed is None:
        return None, None
    return embed[:, :D], embed[:, D:] if embed.shape[-1] > D else None


def normed_attention(
    way: Way,
    x: Tensor,
    branch: Tensor | None,
    norm: nn.LayerNorm,
    weight: Tensor,
    num_heads: int,
    E: Tensor | None = None,
    embed: Tensor | None = None,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the stream x + branch, the attention of norm(x + branch) before its output projection, and the memory.

    x, branch [B, N, D], weight [3D, D], E [N, D], memory [B, M, D]; ``embed`` [N, 2D], or with a memory [N, D], is what
    ``project`` makes of E. The memory that is returned is for the next attention to it and for nothing else: the
    gradients of all of them are added up on their way back.
    """
    assert isinstance(norm.eps, float)
    return _NormedAttention.apply(way, norm.eps, num_heads, x, branch, norm.weight, norm.bias, weight, embed, E, memory)  # type: ignore[return-value]


class _NormedFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, way, eps, x, branch, norm_weight, norm_bias, weight1, bias1, weight2, bias2):
        x, *normed = _enter(way, x, branch, norm_weight, norm_bias, eps)
        _, hidden = hidden_activation(normed[0], weight1, bias1, "relu")  # [B, N, D_hidden]
        ctx.way, ctx.eps, ctx.branched = way, eps, branch is not None
        kept = () if way.recompute else (*normed, hidden)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight1, bias1, weight2, *kept)
        return x, F.linear(hidden, weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx, past, grad):
        x, norm_weight, norm_bias, weight1, bias1, weight2, *kept = ctx.saved_tensors
        passes = ctx.way.passes
        if kept:
            y, mean, rstd, hidden = kept
        else:
            y, mean, rstd = passes.normalise(x, norm_weight, norm_bias, ctx.eps, x.dtype)
            _, hidden = hidden_activation(y, weight1, bias1, "relu")
        y, hidden, out = rows_of(y), rows_of(hidden), rows_of(grad)
        dweight2 = out.t() @ hidden
        dhidden, dbias1 = passes.relu_backward(out @ weight2, hidden, bias1.dtype)
        dweight1 = dhidden.t() @ y
        dx, dgain, dbias, total = passes.normalise_backward_add(
            dhidden @ weight1, x, mean, rstd, norm_weight, norm_bias, past
        )
        # At the end of a layer one tensor is the gradient of stream and branch.
        dbias2 = total if past is grad else out.sum(0)
        dnorm = dgain.to(norm_weight.dtype), dbias.to(norm_bias.dtype)
        return None, None, dx, dx if ctx.branched else None, *dnorm, dweight1, dbias1, dweight2, dbias2


def normed_ffn(
    way: Way, x: Tensor, branch: Tensor, norm: nn.LayerNorm, linear1: nn.Linear, linear2: nn.Linear
) -> tuple[Tensor, Tensor]:
    """Return the stream x + branch and linear2(relu(linear1(norm(x + branch)))), all [B, N, D]."""
    weights = norm.weight, norm.bias, linear1.weight, linear1.bias, linear2.weight, linear2.bias
    return _NormedFFN.apply(way, norm.eps, x, branch, *weights)  # type: ignore[return-value]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, E, *weights):
        ctx.rows = rows
        stacked = E.new_empty(sum(rows), E.shape[1])
        torch._foreach_copy_(stacked.split(rows), [w[:n] for w, n in zip(weights, rows, strict=True)])
        ctx.save_for_backward(stacked)
        return (E @ stacked.t()).split(rows, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        (stacked,) = ctx.saved_tensors
        joined = stacked.new_empty(len(grads[0]), len(stacked))  # [N, sum of rows]
        torch._foreach_copy_(joined.split(ctx.rows, dim=1), grads)
        return None, joined @ stacked, *[None] * len(grads)


def project(E: Tensor, weights: Sequence[Tensor], rows: Sequence[int]) -> tuple[Tensor, ...]:
    """Return E w[:n]^T [N, n] for each weight w [3D, D] and number n of ``rows``, all in one product.

    Differentiable in E alone: a weight's part of the gradient is taken where the projection is used.
    """
    return _Project.apply(tuple(rows), E, *weights)  # type: ignore[return-value]
