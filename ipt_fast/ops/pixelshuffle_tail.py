"""conv -> PixelShuffle -> ... -> conv without activations, as one collapsed convolution with an exact frame.

Every EDSR-like network ends so (EDSR, RCAN, SwinIR classical, HAT, EDT, IPT). The chain is linear: it is one 5x5
convolution at low resolution and a PixelShuffle, but for a frame of low-resolution cells, which get kernels of their
own because the chain pads its inner features with zeros.
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.ops._common import FLOATS, any_requires_grad, autocast_off, cast, check_integer, compute_dtype
from ipt_fast.ops._pixelshuffle_tail_checks import check_input, checked_chain, checked_scales, tensors_of, unlike_plain
from ipt_fast.ops._pixelshuffle_tail_collapse import Collapsed, apply_collapsed, collapse
from ipt_fast.ops._pixelshuffle_tail_compose import Axis, Conv, axes_of, chain, class_kernels, composing_work
from ipt_fast.ops._registry import Backend, Backends, triton_missing

_OP = "pixelshuffle_tail"
# What composing costs beyond its multiplications, in multiplications of the chain. On a CPU measured (bench/notes); on
# a GPU by count: about a hundred launches, in whose time the chain does some 400,000 cells.
_COMPOSING = {"cpu": 1 << 24, "cuda": 1 << 36}


class _Call(NamedTuple):
    """A call, as far as it decides about backends; dtype is judged where given."""

    device: str
    dtype: torch.dtype | None = None
    requires_grad: bool = False
    pays: bool = True  # collapsing is less work than the chain, composing included
    portable: bool = False  # a program is being written that other runtimes may read


def pixelshuffle_tail_reference(x: Tensor, convs: Sequence[Conv], scales: Sequence[int]) -> Tensor:
    """Compute the chain as networks write it: each convolution pads with k // 2 zeros; the oracle of every backend."""
    return chain(x, convs, scales)


# Backends: x and what is made of the weights -> the result; all but "triton" are differentiable.


def _eager(x: Tensor, convs: Sequence[Conv], scales: Sequence[int]) -> Tensor:
    if x.shape[0] == 0:  # nn.PixelShuffle cannot differentiate an empty batch
        return _eager(F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)), convs, scales)[:0]
    return chain(x, [(w.to(x.dtype), cast(b, x.dtype)) for w, b in convs], scales).contiguous()


def _collapsed(x: Tensor, tail: Collapsed, axes: tuple[Axis, Axis]) -> Tensor:
    work = _work_dtype(x.device, x.dtype)
    return apply_collapsed(x.to(work), tail.to(work), *axes).to(x.dtype)


def _work_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    # CPUs have no fast float16 convolution; float32 is both faster and closer.
    return torch.float32 if device.type == "cpu" and dtype == torch.float16 else dtype


def _triton(*args):
    from ipt_fast.kernels.pixelshuffle_tail import pixelshuffle_tail_forward

    return pixelshuffle_tail_forward(*args)


def _triton_reason(call: _Call) -> str | None:
    if reason := None if torch.device(call.device).type == "meta" else triton_missing(call.device):
        return reason
    if call.dtype == torch.float64:
        return "has no float64 kernel"
    return "has no backward pass (call it under torch.no_grad())" if call.requires_grad else None


def _preference(call: _Call) -> list[str]:
    # float32 matmuls use no tensor cores in the Triton kernel, and on a CPU it is Triton's interpreter.
    half = call.dtype in (None, torch.float16, torch.bfloat16)
    fast = torch.device(call.device).type == "cuda" and half
    order = ["triton", "collapsed"] if fast else ["collapsed", "triton"]
    order.insert(0 if call.portable or not call.pays else 2 if fast else 1, "eager")
    return order


BACKENDS = Backends(
    _OP,
    _Call,
    (Backend("triton", _triton, None, _triton_reason), Backend("collapsed", _collapsed), Backend("eager", _eager)),
    _preference,
)


# Dispatcher registration of the one backend that is no composition of PyTorch's own operators.


def _fake(x, kernels, bias, scale, frame, impl):
    return x.new_empty(x.shape[0], kernels.shape[-1] // scale**2, scale * x.shape[2], scale * x.shape[3])


_forward = BACKENDS.define_forward(
    "(Tensor x, Tensor kernels, Tensor bias, int scale, int[] frame, str impl) -> Tensor", _fake
)


# Autograd differentiates the composition of the kernels and their convolution.


def pixelshuffle_tail(x: Tensor, convs: Sequence, scales: Sequence[int], *, impl: str | None = None) -> Tensor:
    """Compute ``conv -> PixelShuffle -> ... -> conv`` with nothing between, for a fraction of the chain's work.

    Equal to the chain everywhere, the border included, to the precision of the dtype; differentiable to x and to every
    weight and bias, any number of times. A nan or inf in x spreads over all pixels of the cells that see it. For 64
    features and 3x3 kernels an x2 tail needs 12k multiplications a low-resolution pixel instead of 154k, x3 28k instead
    of 347k, x4 77k instead of 765k. Each call composes the kernels from the weights as they are; for weights that stay
    as they are, ``collapse_tail`` does that once.

    Args:
        x: features [B, C, H, W], float16, bfloat16, float32 or float64, any H and W from 1; B may be 0.
        convs: one more than ``scales``; each an ``nn.Conv2d``, a weight [out, in, kh, kw], or a pair (weight, bias or
            None). Odd kernels of any size, k // 2 zeros around, stride 1, no groups.
        scales: r of the PixelShuffle after each convolution but the last: (2,), (3,), (2, 2) for x2, x3, x4.
        impl: "triton" (one fused kernel, inference only), "collapsed" (one convolution and a frame) or "eager" (the
            chain), see ``backend_status``; None chooses: the chain where collapsing and composing would not be less
            work, as for a 1x1 convolution to many channels or for a few pixels, and in exported programs. Images of
            less than the frame have no inner part; for those every backend is the chain.

    Returns:
        [B, C_out, R H, R W] with R the product of ``scales``; dtype of x, or autocast's.

    Raises:
        ValueError: shapes that do not fit together, even kernels, an unknown backend.
        TypeError: no floating-point tensors, or x and weights of different dtypes outside autocast.
        RuntimeError: the backend asked for cannot serve the call.
    """
    return _run(x, *checked_chain(convs, scales), impl)


def _run(x: Tensor, convs: list[Conv], scales: tuple[int, ...], impl=None, composed: "CollapsedTail | None" = None):
    """Run the tail, with kernels that are ``composed`` already or from the weights."""
    check_input(x, tensors_of(convs))
    dtype = compute_dtype(x)
    with autocast_off(x):
        x = x.resolve_neg() if dtype == x.dtype else x.to(dtype)
        (y_axis, x_axis), cells = (axes := _axes(convs, scales)), x.shape[0] * x.shape[2] * x.shape[3]
        work = 2 * composing_work([w for w, _ in convs], *axes) + _COMPOSING.get(x.device.type, 0)
        pays = _halves(convs, scales, axes, cells, 0 if composed else work)
        portable = composed is None and (torch.compiler.is_exporting() or torch.jit.is_tracing())
        requires_grad = any_requires_grad([x, *tensors_of(convs)])
        backend = BACKENDS.resolve(impl, _Call(str(x.device), dtype, requires_grad, pays, portable))
        all_frame = x.shape[2] < y_axis.smallest or x.shape[3] < x_axis.smallest
        if backend.name == "eager" or all_frame or x.shape[0] == 0:
            return _eager(x, convs, scales)
        if backend.name == "triton":
            kernels, bias = composed._pair("classes") if composed else class_kernels(_wide(convs), scales, *axes)
            return _forward(x, kernels.to(dtype), bias.to(dtype), y_axis.scale, [y_axis.frame, x_axis.frame], "triton")
        tail = Collapsed(*map(composed._pair, Collapsed._fields)) if composed else collapse(_wide(convs), scales, *axes)
        return backend.forward(x, tail, axes)


def _axes(convs: Sequence[Conv], scales: Sequence[int]) -> tuple[Axis, Axis]:
    # torch.jit.trace has tensors for sizes, and compilers symbols: neither is a key of a cache.
    heights, widths = ([operator.index(w.shape[i]) for w, _ in convs] for i in (2, 3))
    return axes_of(tuple(heights), tuple(widths), tuple(scales))


def _wide(convs: Sequence[Conv]) -> list[Conv]:
    """Return the weights in the dtype that kernels are composed in."""
    wide = torch.promote_types(convs[0][0].dtype, torch.float32)
    return [(w.to(wide), cast(b, wide)) for w, b in convs]


def _halves(convs: Sequence[Conv], scales: Sequence[int], axes: tuple[Axis, Axis], cells: int, composing: int) -> bool:
    """Return whether collapsing at least halves the multiplications, and saves ``composing`` of them over all cells."""
    last, features, (y, x) = convs[-1][0], 1, axes
    whole = last.numel() * y.scale**2
    for (weight, _), r in zip(convs[:-1], scales, strict=True):
        whole += weight.numel() * features
        features *= r * r
    collapsed = last.shape[0] * y.scale**2 * convs[0][0].shape[1] * y.width * x.width
    # No symbolic comparison: what is chosen is a constant to compilers.
    return True if 2 * collapsed <= whole and (whole - collapsed) * cells >= composing else False  # noqa: SIM210


class PixelShuffleTail(nn.Module):
    """An EDSR-like tail: convolution, PixelShuffle, ..., convolution, run by ``pixelshuffle_tail``.

    The parameters are those of the chain, ``convs.0.weight`` and so on, and all that it holds. For weights that stay
    as they are, ``collapse_tail(tail.convs, tail.scales)`` composes once.
    """

    def __init__(
        self,
        n_feats: int = 64,
        out_channels: int = 3,
        scales: Sequence[int] = (2,),
        *,
        kernel_size: int = 3,
        bias: bool = True,
        impl: str | None = None,
    ):
        super().__init__()
        for name, given in (("n_feats", n_feats), ("out_channels", out_channels), ("kernel_size", kernel_size)):
            check_integer("PixelShuffleTail", name, given, 1)
        self.scales, self.impl = checked_scales(scales), impl
        widths, half = [n_feats * r * r for r in self.scales] + [out_channels], kernel_size // 2
        self.convs = nn.ModuleList(nn.Conv2d(n_feats, w, kernel_size, padding=half, bias=bias) for w in widths)
        checked_chain(self.convs, self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, n_feats, H, W] to [B, out_channels, R H, R W]."""
        return pixelshuffle_tail(x, list(self.convs), self.scales, impl=self.impl)

    def extra_repr(self) -> str:
        return f"scales={self.scales}"


class CollapsedTail(nn.Module):
    """A tail whose kernels are composed already, made by ``collapse_tail``; buffers alone, differentiable to x.

    Its results are the bits of ``pixelshuffle_tail(x, convs, scales)`` in inference where that does not take the chain
    (because composing for one call would not pay); they do not follow the weights that it was made from.
    """

    def __init__(self, convs: list[Conv], scales: tuple[int, ...], dtype: torch.dtype):
        super().__init__()
        self.scales = scales
        wide, axes = _wide(convs), _axes(convs, scales)
        tail = collapse(wide, scales, *axes).to(_work_dtype(convs[0][0].device, dtype))
        kernels, bias = class_kernels(wide, scales, *axes)
        # The weights are for images that are all frame.
        pairs = {str(i): (w.to(dtype), cast(b, dtype)) for i, (w, b) in enumerate(convs)}
        pairs |= {**tail._asdict(), "classes": (kernels.to(dtype), bias.to(dtype))}
        for name, pair in pairs.items():
            for kind, value in zip(("weight", "bias"), pair or (None, None), strict=True):
                self.register_buffer(f"{kind}_{name}", None if value is None else value.clone())

    def _pair(self, name: str | int):
        weight = getattr(self, f"weight_{name}")
        return None if weight is None else (weight, getattr(self, f"bias_{name}"))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W], in the dtype of the buffers unless autocast is on, to [B, C_out, R H, R W]."""
        return _run(x, [self._pair(i) for i in range(len(self.scales) + 1)], self.scales, composed=self)

    def extra_repr(self) -> str:
        return f"scales={self.scales}"


def collapse_tail(convs: Sequence, scales: Sequence[int], dtype: torch.dtype | None = None) -> CollapsedTail:
    """Compose the kernels of a tail once, for weights that stay as they are.

    Args:
        convs, scales: as in ``pixelshuffle_tail``; the weights are copied.
        dtype: of the module; None means that of the weights. Kernels are composed in the weights' dtype, float32 for
            halves, and rounded once.

    Returns:
        A frozen module, x [B, C, H, W] -> [B, C_out, R H, R W], to be moved, copied, pickled, compiled and traced.

    Raises:
        ValueError, TypeError: as ``pixelshuffle_tail``; ``dtype`` is no floating-point dtype.
    """
    pairs, scales = checked_chain(convs, scales)
    dtype = pairs[0][0].dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        given = dtype if isinstance(dtype, torch.dtype) else type(dtype).__name__
        raise TypeError(f"collapse_tail: dtype must be float16, bfloat16, float32 or float64 (got {given})")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(pairs[0][0].device.type, enabled=False):
        return CollapsedTail([(w.detach(), None if b is None else b.detach()) for w, b in pairs], scales, dtype)


backend_status = BACKENDS.status
__all__ = [
    "CollapsedTail",
    "PixelShuffleTail",
    "backend_status",
    "collapse_tail",
    "pixelshuffle_tail",
    "pixelshuffle_tail_reference",
    "unlike_plain",
]
