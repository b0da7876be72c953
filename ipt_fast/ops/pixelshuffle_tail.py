"""conv -> PixelShuffle -> ... -> conv without activations, as one collapsed convolution with an exact frame.

Every EDSR-like network ends so (EDSR, RCAN, SwinIR classical, HAT, EDT, IPT). The chain is linear: it is one 5x5
convolution at low resolution and a PixelShuffle, but for a frame of low-resolution cells, which get kernels of their
own because the chain pads its inner features with zeros. The weights stay the chain's own.
"""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ipt_fast.ops._backend import choose
from ipt_fast.ops._tail_collapse import Axis, Collapsed, Conv, axes_of, chain

_OP = "pixelshuffle_tail"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pixelshuffle_tail_reference(x: Tensor, convs: Sequence[Conv], scales: Sequence[int]) -> Tensor:
    """The chain as networks write it: each convolution pads with k // 2 zeros; the oracle of every backend."""
    return chain(x, convs, scales)


def _apply(x: Tensor, tail: Collapsed) -> Tensor:
    """The collapsed tail on x [B, C, H, W]: one convolution for the inside, small matrix products for the frame."""
    y_axis, x_axis = tail.rows_axis, tail.columns_axis
    fy, fx, R, B = y_axis.frame, x_axis.frame, y_axis.scale, len(x)
    pad_y, pad_x = y_axis.reach - fy, x_axis.reach - fx
    H, W = x.shape[2] - 2 * fy, x.shape[3] - 2 * fx  # of the inside
    z = F.conv2d(x, tail.inner, tail.inner_bias, padding=(pad_y, pad_x))  # [B, P, H + slack, W + slack]
    inside = _align(z, y_axis, x_axis, H, W)  # [B, P, H, W]
    P = inside.shape[1]
    if tail.columns is not None:
        depth = x_axis.depth
        strips = torch.stack([x[..., :depth], x[..., -depth:]])  # [2, B, C, H, depth]
        strips = F.pad(strips, (0, 0, pad_y, pad_y)).unfold(3, 2 * y_axis.reach + 1, 1)  # [2, B, C, H, depth, taps]
        strips = strips.permute(0, 2, 5, 4, 1, 3).reshape(2, -1, B * H)
        columns = _product(tail.columns, strips, tail.columns_bias).view(2, fx, P, B, H)
        left, right = columns.permute(0, 3, 2, 4, 1)  # [B, P, H, fx]
        inside = torch.cat([left, inside, right], 3)
    if tail.rows is None:
        return F.pixel_shuffle(inside, R)
    depth = y_axis.depth
    strips = torch.stack([x[:, :, :depth], x[:, :, -depth:]])  # [2, B, C, depth, W]
    windows = F.pad(strips, (pad_x, pad_x)).unfold(4, 2 * x_axis.reach + 1, 1)  # [2, B, C, depth, W, taps]
    windows = windows.permute(0, 2, 3, 5, 1, 4).reshape(2, -1, B * W)
    rows = _product(tail.rows, windows, tail.rows_bias).view(2, fy, P, B, W)
    rows = rows.permute(0, 3, 2, 1, 4)  # [2, B, P, fy, W]
    if tail.corners is not None:
        depth = x_axis.depth
        patches = torch.stack([strips[..., :depth], strips[..., -depth:]], 1)  # [2, 2, B, C, depth, depth]
        patches = patches.reshape(4, B, -1).transpose(1, 2)
        corners = _product(tail.corners, patches, tail.corners_bias).view(2, 2, fy, fx, P, B)
        left, right = corners.permute(1, 0, 5, 4, 2, 3)  # [2, B, P, fy, fx]
        rows = torch.cat([left, rows, right], 4)
    return F.pixel_shuffle(torch.cat([rows[0], inside, rows[1]], 2), R)


def _product(kernels: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    return kernels @ columns if bias is None else torch.baddbmm(bias, kernels, columns)


def _align(z: Tensor, y_axis: Axis, x_axis: Axis, H: int, W: int) -> Tensor:
    """[B, P, H, W] where output pixel (a, b) of a cell lies starts[a] lines further down and starts[b] to the right."""
    if not any(y_axis.starts) and not any(x_axis.starts):
        return z
    R = y_axis.scale
    z = z.unflatten(1, (-1, R, R))  # [B, O, R, R, H + slack, W + slack]
    z = torch.stack([p.narrow(-2, s, H) for p, s in zip(z.unbind(2), y_axis.starts, strict=True)], 2)
    z = torch.stack([p.narrow(-1, s, W) for p, s in zip(z.unbind(3), x_axis.starts, strict=True)], 3)
    return z.flatten(1, 3)


@dataclass
class _Kept:
    """Collapsed kernels with what they were made from: the tensors, their state, and on a CPU copies of them."""

    tensors: list[weakref.ref]
    state: list
    copies: list[Tensor]
    tail: Collapsed

    def holds(self, tensors: list[Tensor], state: list) -> bool:
        if self.state != state or any(ref() is not t for ref, t in zip(self.tensors, tensors, strict=True)):
            return False
        return all(torch.equal(t, c) for t, c in zip(tensors, self.copies, strict=False))


_KEPT: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by the last weight of a tail


def _collapsed(convs: Sequence[Conv], scales: Sequence[int], dtype: torch.dtype) -> Collapsed:
    """The kernels: composed with gradients where those are wanted, otherwise kept until a weight changes.

    Version counters do not see all changes: fused optimizers and writes through ``.data`` leave them as they are. So a
    call that learns drops what is kept, and on a CPU, where that takes a few microseconds, the weights are compared.
    """
    tensors = [t for conv in convs for t in conv if t is not None]
    last = convs[-1][0]
    if torch.compiler.is_compiling() or any(type(t) not in (Tensor, nn.Parameter) for t in tensors):
        return Collapsed(convs, scales, dtype)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        _KEPT.pop(last, None)
        return Collapsed(convs, scales, dtype)
    try:
        state = [(t._version, t.data_ptr(), t.shape) for t in tensors]
    except RuntimeError:  # inference tensors count no versions, functorch's have no address
        return Collapsed(convs, scales, dtype)
    state += [[b is None for _, b in convs], tuple(scales), dtype]
    kept = _KEPT.get(last)
    if kept is not None and kept.holds(tensors, state):
        return kept.tail
    with torch.inference_mode(False), torch.no_grad():
        copies = [t.clone() for t in tensors] if last.is_cpu else []
        kept = _Kept([weakref.ref(t) for t in tensors], state, copies, Collapsed(convs, scales, dtype))
    _KEPT[last] = kept
    return kept.tail


def _needs_fewer_products(convs: Sequence[Conv], scales: Sequence[int]) -> bool:
    """Whether collapsing at least halves the multiplications an image cell; the frame and composing cost a little."""
    y, x = axes_of(convs, scales)
    chain = sum(w.numel() * math.prod(scales[:i]) ** 2 for i, (w, _) in enumerate(convs))
    return 2 * len(convs[-1][0]) * y.scale**2 * convs[0][0].shape[1] * y.width * x.width <= chain


def _check(x: Tensor, convs: Sequence, scales: Sequence[int]) -> list[Conv]:
    if len(convs) != len(scales) + 1:
        raise ValueError(
            f"{_OP}: needs a convolution before each PixelShuffle and one after the last, so one more than scales "
            f"(got {len(convs)} convolutions, {len(scales)} scales)"
        )
    if any(not isinstance(r, int) or r < 1 for r in scales):
        raise ValueError(f"{_OP}: scales must be whole numbers from 1 up (got {list(scales)})")
    pairs = [_pair(conv, i) for i, conv in enumerate(convs)]
    if x.dim() != 4 or not all(x.shape[1:]):
        raise ValueError(f"{_OP}: x must be [B, C, H, W] with C, H, W >= 1 (got shape {list(x.shape)})")
    channels = x.shape[1]
    for i, ((weight, bias), r) in enumerate(zip(pairs, [*scales, 1], strict=True)):
        if weight.dim() != 4 or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            raise ValueError(f"{_OP}: convs[{i}] needs a weight [out, in, odd, odd] (got shape {list(weight.shape)})")
        out = weight.shape[0]
        if weight.shape[1] != channels:
            raise ValueError(f"{_OP}: convs[{i}] takes {weight.shape[1]} channels, but {channels} come in")
        if out % (r * r):
            raise ValueError(f"{_OP}: convs[{i}] gives {out} channels, no multiple of {r}^2 for PixelShuffle({r})")
        if bias is not None and bias.shape != (out,):
            raise ValueError(f"{_OP}: convs[{i}] needs a bias of shape [{out}] (got {list(bias.shape)})")
        channels = out // (r * r)
    tensors = [t for pair in pairs for t in pair if t is not None]
    if x.dtype not in _DTYPES or any(t.dtype not in _DTYPES for t in tensors):
        raise TypeError(f"{_OP}: needs float16, bfloat16, float32 or float64 (got {x.dtype} and {tensors[0].dtype})")
    if any(t.device != x.device for t in tensors):
        raise ValueError(f"{_OP}: x is on {x.device}, the weights are not; move them to one device")
    return pairs


def _pair(conv, index: int) -> Conv:
    if isinstance(conv, nn.Conv2d):
        if reason := unlike_plain(conv):
            raise ValueError(f"{_OP}: convs[{index}] {reason}; only plain convolutions can be collapsed")
        return conv.weight, conv.bias
    if isinstance(conv, Tensor):
        return conv, None
    weight, bias = conv
    return weight, bias


def unlike_plain(conv: nn.Conv2d) -> str | None:
    """Why a convolution is none that this op can stand for, or None: stride 1, k // 2 zeros around, no groups."""
    half = tuple(k // 2 for k in conv.kernel_size)
    if any(k % 2 == 0 for k in conv.kernel_size):
        return f"has an even kernel {conv.kernel_size}"
    if conv.stride != (1, 1) or conv.dilation != (1, 1) or conv.groups != 1:
        return f"has stride {conv.stride}, dilation {conv.dilation}, groups {conv.groups}; needs 1"
    if conv.padding_mode != "zeros" or (conv.padding != half and conv.padding != "same"):
        return f"has padding {conv.padding} ({conv.padding_mode}); needs {half} zeros"
    return None


def pixelshuffle_tail(x: Tensor, convs: Sequence, scales: Sequence[int], impl: str | None = None) -> Tensor:
    """``conv -> PixelShuffle -> ... -> conv`` with nothing between, for a fraction of the chain's work.

    Equal to the chain everywhere, the border included, to the precision of the dtype; differentiable to x and to every
    weight and bias. For 64 features and 3x3 kernels an x2 tail needs 12k multiplications a low-resolution pixel
    instead of 154k, x3 28k instead of 347k, x4 77k instead of 765k. What is collapsed is kept while no gradient of a
    weight is wanted, and made anew when a weight has changed in place. On a CPU every change is seen. On a GPU all are
    but those that bypass PyTorch's version counter between two calls without gradients, as ``weight.data.copy_`` does:
    call ``forget``, or ``train()`` or ``eval()`` of the module, after such a write.

    Args:
        x: features [B, C, H, W], float16, bfloat16, float32 or float64, any H and W from 1.
        convs: one more than ``scales``; each an ``nn.Conv2d``, a weight [out, in, kh, kw], or a pair (weight, bias or
            None). Odd kernels of any size, k // 2 zeros around, stride 1, no groups.
        scales: r of the PixelShuffle after each convolution but the last: (2,), (3,), (2, 2) for x2, x3, x4.
        impl: backend, see ``backend_status``; None chooses: the chain itself where collapsing would not halve the
            work, as for a 1x1 convolution to many channels.

    Returns:
        [B, C_out, R H, R W] with R the product of ``scales``; dtype of x, or autocast's.

    Raises:
        ValueError: shapes that do not fit together, even kernels, an unknown backend.
        TypeError: no floating-point tensors, or x and weights of different dtypes outside autocast.
        RuntimeError: the backend asked for cannot serve the call.
    """
    pairs = _check(x, convs, scales)
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
    elif any(t.dtype != dtype for pair in pairs for t in pair if t is not None):
        raise TypeError(f"{_OP}: x is {dtype}, the weights {pairs[0][0].dtype}; use one dtype or torch.autocast")
    order = ("collapsed", "eager") if _needs_fewer_products(pairs, scales) else ("eager", "collapsed")
    backend = choose(_OP, impl, dict.fromkeys(order))
    y, x_axis = axes_of(pairs, scales)
    too_small = any(n < a.smallest for n, a in zip(x.shape[2:], (y, x_axis), strict=True))
    with torch.autocast(x.device.type, enabled=False):
        if backend == "eager" or too_small:  # an image that is all frame: the chain is small there
            cast = [(w.to(dtype), None if b is None else b.to(dtype)) for w, b in pairs]
            return pixelshuffle_tail_reference(x.to(dtype), cast, scales)
        # CPUs have no fast half-precision convolution; float32 is both faster and closer.
        work = torch.float32 if x.device.type == "cpu" and dtype == torch.float16 else dtype
        return _apply(x.to(work), _collapsed(pairs, scales, work)).to(dtype)


class PixelShuffleTail(nn.Module):
    """An EDSR-like tail: convolution, PixelShuffle, ..., convolution, run by ``pixelshuffle_tail``.

    The parameters are those of the chain, ``convs.0.weight`` and so on; what is collapsed is never stored.
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
        half = kernel_size // 2
        widths = [n_feats * r * r for r in scales] + [out_channels]
        self.convs = nn.ModuleList(nn.Conv2d(n_feats, w, kernel_size, padding=half, bias=bias) for w in widths)
        self.scales, self.impl = tuple(scales), impl

    @classmethod
    def from_convs(cls, convs: Sequence[nn.Conv2d], scales: Sequence[int], impl: str | None = None):
        """A tail around convolutions that exist; they are shared, not copied."""
        tail = cls.__new__(cls)
        nn.Module.__init__(tail)
        tail.convs, tail.scales, tail.impl = nn.ModuleList(convs), tuple(scales), impl
        return tail

    def forward(self, x: Tensor) -> Tensor:
        """x [B, n_feats, H, W] -> [B, out_channels, R H, R W]."""
        return pixelshuffle_tail(x, list(self.convs), self.scales, self.impl)

    def train(self, mode: bool = True):
        """As in nn.Module; what is kept is made anew, in case a weight was written through ``.data``."""
        _KEPT.pop(self.convs[-1].weight, None)
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"scales={self.scales}"


def forget() -> None:
    """Drop every collapsed kernel that is kept; needed only on a GPU after writing through ``weight.data``."""
    _KEPT.clear()


def backend_status(device: torch.device | str) -> dict[str, str | None]:
    """Backend -> None where it can serve ``device``, otherwise the reason why not."""
    return {"collapsed": None, "eager": None}


__all__ = [
    "PixelShuffleTail",
    "backend_status",
    "forget",
    "pixelshuffle_tail",
    "pixelshuffle_tail_reference",
    "unlike_plain",
]
