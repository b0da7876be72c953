"""A network for inference: everything that can be derived from its parameters is derived once, on request.

A network computes from its parameters as they are at every call. For parameters that stay, some of that work is the
same every time: casting weights, reordering them for oneDNN (``F.linear`` on a CPU does so for every GEMM, writes the
bias into the result first and leaves the ReLU to another pass), stacking the decoder's key and value weights so that
one GEMM serves all its layers, collapsing a tail, projecting the task's embedding.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ipt_fast.arguments import checked
from ipt_fast.inference.graphs import WindowGraphs
from ipt_fast.inference.linear import EIGHT_BITS, Arithmetic, arithmetic
from ipt_fast.model import IPT
from ipt_fast.model.ipt import check_input, to_features, to_tokens
from ipt_fast.model.layers import Attention, DecoderLayer, EncoderLayer, MLPHead, is_plain
from ipt_fast.model.tail import Tail
from ipt_fast.ops import ffn, patch_attention
from ipt_fast.ops._common import autocast_dtype
from ipt_fast.ops.pixelshuffle_tail import collapse_tail

_M = TypeVar("_M", bound=nn.Module)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, *EIGHT_BITS)


class PreparedFFN(nn.Module):
    """linear2(relu(linear1(norm(x)))) of two linear layers, with or without a norm."""

    def __init__(self, norm: nn.Module | None, linear1: nn.Module, linear2: nn.Module, how: Arithmetic):
        super().__init__()
        self.norm = None if norm is None else _own(norm, how.dtype)
        self.linear1, self.linear2 = prepared_linear(linear1, how, "relu"), prepared_linear(linear2, how)
        self.ends = getattr(self.linear1, "end", None) == "relu"

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        y, one, two = x if self.norm is None else self.norm(x), self.linear1, self.linear2
        if type(one) is type(two) is nn.Linear:
            return ffn(y, None, None, one.weight, one.bias, two.weight, two.bias)
        return two(one(y) if self.ends else F.relu(one(y)))


class PreparedAttention(nn.Module):
    """Self-attention, or cross-attention to keys and values that are given. E: [T, N, D], T tasks, or None."""

    embeds: Tensor | None

    def __init__(self, attention: Attention, norm: nn.Module, E: Tensor | None, how: Arithmetic, cross: bool):
        super().__init__()
        if "in_proj_weight" not in _expect(attention, Attention)._parameters and not is_parametrized(attention):
            raise ValueError(
                "prepare_for_inference: a hook makes in_proj_weight of an attention (as torch.nn.utils.weight_norm "
                "does); remove it first, which leaves its result"
            )
        weight = attention.in_proj_weight.detach()
        D = weight.shape[1]
        self.num_heads = attention.num_heads
        self.norm = _own(norm, how.dtype)
        self.project = how.linear(weight[:D] if cross else weight, None)
        self.out_proj = prepared_linear(attention.out_proj, how)
        rows = weight[:D] if cross else weight[: 2 * D]
        rows = rows.to(how.dtype)
        embeds = None if E is None else torch.stack([F.linear(e, rows) for e in E.to(how.dtype)])  # [T, N, D or 2D]
        self.register_buffer("embeds", embeds)

    def forward(self, x: Tensor, t: int, keys_values: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [B, N, D] and the number of the task -> [B, N, D]; keys and values [B, M, D] each."""
        projected, k_embed = self.project(self.norm(x)), None
        q_embed = None if self.embeds is None else self.embeds[t]
        if keys_values is not None:
            q, (k, v) = projected, keys_values
        else:
            q, k, v = projected.chunk(3, dim=-1)  # views of [B, N, 3D]
            if q_embed is not None:
                q_embed, k_embed = q_embed.chunk(2, dim=-1)  # [N, D] each
        return self.out_proj(patch_attention(q, k, v, num_heads=self.num_heads, q_embed=q_embed, k_embed=k_embed))


class PreparedLayer(nn.Module):
    """An encoder or a decoder layer."""

    def __init__(self, layer: EncoderLayer | DecoderLayer, E: Tensor | None, how: Arithmetic):
        super().__init__()
        self.self_attn = PreparedAttention(layer.self_attn, layer.norm1, E, how, cross=False)
        self.cross: PreparedAttention | None = None
        norm = layer.norm2
        if isinstance(layer, DecoderLayer):
            self.cross = PreparedAttention(layer.multihead_attn, layer.norm2, E, how, cross=True)
            norm = layer.norm3
        self.ffn = PreparedFFN(norm, layer.linear1, layer.linear2, how)

    def forward(self, x: Tensor, t: int = 0, keys_values: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        x = x + self.self_attn(x, t)
        if self.cross is not None:
            x = x + self.cross(x, t, keys_values)
        return x + self.ffn(x)


class PreparedIPT(nn.Module):
    """What ``prepare_for_inference`` returns; see there."""

    position: Tensor | None

    def __init__(self, model: IPT, tasks: tuple[str, ...], dtype: torch.dtype, graph_windows: int | None = None):
        super().__init__()
        self.graph_windows = graph_windows
        self.config, self.tasks, self.dtype = model.config, tasks, dtype
        how = arithmetic(dtype, next(model.head.parameters()).device)
        self.float_dtype = how.dtype
        body = model.body
        indices = [model.task_index(task) for task in tasks]
        self.sub_mean, self.add_mean = copy.deepcopy(model.sub_mean), copy.deepcopy(model.add_mean)
        self.head = nn.ModuleList(_own(model.head[i], how.dtype) for i in indices)
        self.tail = nn.ModuleList(_tail(model.tail[i], how.dtype) for i in indices)
        mlp = self.config.mlp
        self.linear_encoding = prepared_linear(body.linear_encoding, how) if mlp else None
        self.mlp_head = _mlp_head(body.mlp_head, how) if mlp else None
        position = (
            body.position_encoding.pe.weight.detach().to(how.dtype, copy=True) if self.config.position_embed else None
        )
        self.register_buffer("position", position)
        E = None
        if self.config.task_embed:
            E = body.query_embed.weight.detach()[indices].view(len(indices), -1, self.config.embed_dim)  # [T, N, D]
        encoder = [_expect(layer, EncoderLayer) for layer in body.encoder.layers]
        decoder = [_expect(layer, DecoderLayer) for layer in body.decoder.layers]
        self.encoder = nn.ModuleList(PreparedLayer(layer, None, how) for layer in encoder)
        self.decoder = nn.ModuleList(PreparedLayer(layer, E, how) for layer in decoder)
        self.memory_norm = _own(body.decoder.memory_norm, how.dtype)
        D = self.config.embed_dim
        weights = [layer.multihead_attn.in_proj_weight.detach()[D:] for layer in decoder]
        self.keys_values = how.linear(torch.cat(weights), None)  # [L 2D, D]
        self.requires_grad_(False).eval()
        self._record()

    def _record(self) -> None:
        count, device = self.graph_windows, self.sub_mean.bias.device
        self._compute = self._forward if count is None else WindowGraphs(self._forward, count, device)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compute": None}  # a recording is of this network's memory

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._record()

    def task_index(self, task: str | int) -> int:
        """Return the index of a task among the network's, given by name or index.

        Raises:
            ValueError: the network has no such task, or was not prepared for it.
        """
        names = self.config.tasks
        name = names[task] if isinstance(task, int) and 0 <= task < len(names) else task
        if name not in self.tasks:
            raise ValueError(
                f"IPT: task {task!r} is not in this network, which is prepared for {', '.join(self.tasks)}"
            )
        return names.index(str(name))

    @torch.no_grad()
    def forward(self, x: Tensor, task: str | int | None = None, return_features: bool = False) -> Tensor:
        """x [B, 3, S, S], pixels 0..255 -> [B, 3, rS, rS]; ``task`` may be left out where there is one."""
        if return_features:
            raise ValueError("a prepared network gives no contrastive features; call the model that it was made of")
        if task is None and len(self.tasks) > 1:
            raise ValueError(f"this network is prepared for {', '.join(self.tasks)}: say which task")
        check_input(x, self.config.patch_size)
        t = 0 if task is None else self.tasks.index(self.config.tasks[self.task_index(task)])
        if autocast_dtype(x.device.type) is not None:
            with torch.autocast(x.device.type, enabled=False):  # it has its dtype
                return self._compute(x, t)
        return self._compute(x, t)

    def _forward(self, x: Tensor, t: int) -> Tensor:
        x = head = self.head[t](self.sub_mean(x).to(self.float_dtype))  # [B, n_feats, S, S]
        x = to_tokens(x, self.config.patch_dim)  # [B, N, D]
        if self.linear_encoding is not None:
            x = self.linear_encoding(x) + x
        if self.position is not None:
            x = x + self.position
        for layer in self.encoder:
            x = layer(x)
        parts = self.keys_values(self.memory_norm(x)).chunk(2 * len(self.decoder), dim=-1)  # [B, N, D] each
        for layer, k, v in zip(self.decoder, parts[::2], parts[1::2], strict=True):
            x = layer(x, t, (k, v))
        if self.mlp_head is not None:
            x = self.mlp_head(x) + x
        return self.add_mean(self.tail[t](to_features(x, self.config.patch_dim, self.config.patch_size) + head))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PreparedIPT":
        probe = self.sub_mean.bias.to(self.float_dtype)
        if (moved := fn(probe)).device != probe.device or moved.dtype != probe.dtype:
            raise RuntimeError(
                f"this network is prepared for {probe.device} and {self.dtype}; move the model that it was made of and "
                "prepare that again"
            )
        return self


def prepared_linear(module: nn.Module, how: Arithmetic, end: str = "none") -> nn.Module:
    """Return the same for a linear layer; a copy of a module that is in a linear layer's place."""
    if not is_plain(module, nn.Linear):
        return _own(module, how.dtype)
    assert isinstance(module, nn.Linear)
    return how.linear(module.weight.detach(), None if module.bias is None else module.bias.detach(), end)


def _own(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    # A weight that a hook makes is no leaf, which deepcopy refuses; the copy's own hook makes it again.
    parts = [t for part in module.modules() for t in vars(part).values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(module, {id(t): t.detach() for t in parts}).to(dtype)


def _tail(tail: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(tail, Tail) and (convs := tail.plain_convs()) is not None:
        return collapse_tail(convs, tail.scales, dtype)
    return _own(tail, dtype)


def _mlp_head(head: nn.Module, how: Arithmetic) -> nn.Module:
    if isinstance(head, MLPHead) and head.is_built_in():
        return PreparedFFN(None, head[0], head[3], how)
    return _own(head, how.dtype)


def _expect(module: nn.Module, kind: type[_M]) -> _M:
    if not isinstance(module, kind):
        raise ValueError(
            f"prepare_for_inference: needs a {kind.__name__}, found a {type(module).__name__} in its place; "
            "call the model itself"
        )
    return module


@checked(graph_windows=1)
def prepare_for_inference(
    model: IPT,
    task: str | int | None = None,
    dtype: torch.dtype | None = None,
    *,
    graph_windows: int | None = None,
) -> PreparedIPT:
    """Return a frozen network that computes what ``model`` does, faster, with copies of all that it needs of it.

    Prepare once a network, and again after its parameters have changed. The result is called like the model, runs on
    the device where that is, in its own dtype (autocast does not change it), without gradients. Where a part of the
    model has been replaced, parametrized or pruned, a copy of that module is called; hooks are left behind.

    Outputs are those of the model, in bfloat16 and float16 those of the model under autocast, up to rounding: GEMMs
    are stacked and prepacked, and the tail is collapsed where composing it for one call would not pay.

    In 8 bits the linear layers of the body (projections, feed-forward, embedding and head) multiply 8-bit weights, a
    scale an output channel, with 8-bit tokens, a scale each that is taken anew at every call. Attention, norms, sums,
    head and tail stay in ``float_dtype``: bfloat16, on a CPU that does not multiply it fast float32. ``torch.int8`` is
    for CPUs: with VNNI or AMX by 8-bit instructions, without them the same integers in float32, which is no faster and
    is logged as a warning. ``torch.float8_e4m3fn`` is for GPUs of capability 8.9 or newer, where nobody has run it yet.

    Args:
        model: an ``IPT``; it is not changed.
        task: the task to prepare for, by name or index; None prepares for all tasks of the network. Each takes
            [L, N, 5 D] for its projected embedding.
        dtype: torch.float32, bfloat16, float16, int8 or float8_e4m3fn; None takes that of the model's parameters
            (float64 too).
        graph_windows: on CUDA: run so many windows at once, always, as one CUDA graph a task, which is recorded at the
            third call and belongs to what is returned. Fewer windows are filled up; ``restore`` takes so many at once.
            Not yet run on a GPU. None launches operations one by one.

    Returns:
        ``prepared(x, task)`` with x as for the model; ``task`` may be left out where there is one. It has ``config``,
        ``task_index``, ``tasks``, ``dtype`` and ``float_dtype``.

    Raises:
        TypeError: ``model`` is no ``IPT``.
        ValueError: an unknown task, another dtype, one that the device has no GEMMs of, or graphs without CUDA.
    """
    if not isinstance(model, IPT):
        raise TypeError(f"prepare_for_inference: needs an IPT, got {type(model).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"prepare_for_inference: dtype must be torch.float32, bfloat16, float16, int8 or float8_e4m3fn, got {dtype}"
        )
    names = model.config.tasks
    tasks = names if task is None else (names[model.task_index(task)],)
    own = next(model.head.parameters())
    if graph_windows is not None and own.device.type != "cuda":
        raise ValueError(
            f"prepare_for_inference: graph_windows needs a CUDA device (found {own.device.type}); leave it out"
        )
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(own.device.type, enabled=False):
        return PreparedIPT(model, tasks, dtype or own.dtype, graph_windows)


__all__ = ["PreparedIPT", "prepare_for_inference"]
