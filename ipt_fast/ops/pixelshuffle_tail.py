"""conv -> PixelShuffle -> ... -> conv without activations, as one collapsed convolution with an exact frame.

Every EDSR-like network ends so (EDSR, RCAN, SwinIR classical, HAT, EDT, IPT). The chain is linear: it is one 5x5
convolution at low resolution and a PixelShuffle, but for a frame of low-resolution cells, which get kernels of their
own because the chain pads its inner features with zeros. The weights stay the chain's own.
"""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ipt_fast.ops._common import any_requires_grad
from ipt_fast.ops._pixelshuffle_tail_collapse import ClassKernels, Collapsed, Conv, apply, axes_of, chain
from ipt_fast.ops._registry import choose, constant_to_compilers, triton_missing

_OP = "pixelshuffle_tail"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pixelshuffle_tail_reference(x: Tensor, convs: Sequence[Conv], scales: Sequence[int]) -> Tensor:
    """The chain as networks write it: each convolution pads with k // 2 zeros; the oracle of every backend."""
    return chain(x, convs, scales)


@dataclass
class _Kept:
    """Collapsed kernels with what they were made from: the tensors, their state, and on a CPU what they held."""

    tensors: list[weakref.ref]
    state: tuple
    contents: list[tuple[Tensor, Tensor]]  # views of the tensors with copies
    tail: Collapsed | ClassKernels

    def holds(self, tensors: list[Tensor], state: tuple) -> bool:
        if self.state != state or any(ref() is not t for ref, t in zip(self.tensors, tensors, strict=True)):
            return False
        return all(torch.equal(now, then) for now, then in self.contents)


def _content(t: Tensor) -> tuple[Tensor, Tensor]:
    """A view of t, as whole numbers, which compare twice as fast, where the bytes allow it, and a copy."""
    t = t.detach()
    words = 8 // t.element_size()
    if t.is_contiguous() and t.numel() % words == 0 and t.storage_offset() % words == 0:
        t = t.view(-1).view(torch.int64)
    return t, t.clone()


_KEPT: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by the last weight of a tail


def tensors_of(convs: Sequence[Conv]) -> list[Tensor]:
    """Weights and biases in order."""
    return [t for conv in convs for t in conv if t is not None]


def _class_kernels(convs: Sequence[Conv], scales: Sequence[int], dtype: torch.dtype) -> ClassKernels:
    return cast("ClassKernels", _kept(ClassKernels, convs, scales, dtype))


def _collapsed(convs: Sequence[Conv], scales: Sequence[int], dtype: torch.dtype) -> Collapsed:
    return cast("Collapsed", _kept(Collapsed, convs, scales, dtype))


def _kept(
    make: type[Collapsed] | type[ClassKernels], convs: Sequence[Conv], scales: Sequence[int], dtype: torch.dtype
) -> Collapsed | ClassKernels:
    """The kernels: composed with gradients where those are wanted, otherwise kept until a weight changes.

    Version counters do not see all changes: fused optimizers and writes through ``.data`` leave them as they are. So a
    call that learns drops what is kept, and on a CPU, where that takes a few microseconds, the weights are compared.
    """
    tensors = tensors_of(convs)
    last = convs[-1][0]
    if torch.compiler.is_compiling() or any(type(t) not in (Tensor, nn.Parameter) for t in tensors):
        return make(convs, scales, dtype)
    if any_requires_grad(tensors):
        _KEPT.pop(last, None)
        return make(convs, scales, dtype)
    try:
        versions = tuple([(t._version, t.data_ptr(), t.shape) for t in tensors])
    except RuntimeError:  # inference tensors count no versions, functorch's have no address
        return make(convs, scales, dtype)
    state = (versions, tuple([b is None for _, b in convs]), tuple(scales), dtype, make)
    found = _KEPT.get(last)
    if found is not None and found.holds(tensors, state):
        return found.tail
    with torch.inference_mode(False), torch.no_grad():
        contents = [_content(t) for t in tensors] if last.is_cpu else []
        found = _Kept([weakref.ref(t) for t in tensors], state, contents, make(convs, scales, dtype))
    _KEPT[last] = found
    return found.tail


# Dispatcher registration, for compiled inference: to the compiler the call is one opaque op, so that the kept kernels
# serve there too. Without it every compiled call would compose them anew.

torch.library.define(
    f"ipt_fast::{_OP}",
    "(Tensor x, Tensor[] weights, Tensor?[] biases, int[] scales, str impl) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl(f"ipt_fast::{_OP}", "CompositeExplicitAutograd")
def _inference(x: Tensor, weights: list[Tensor], biases: list[Tensor | None], scales: list[int], impl: str) -> Tensor:
    with torch.no_grad():
        return _run(x, list(zip(weights, biases, strict=True)), scales, impl)


@torch.library.register_fake(f"ipt_fast::{_OP}")
def _inference_fake(x, weights, biases, scales, impl):
    R = math.prod(scales)
    return x.new_empty(x.shape[0], weights[-1].shape[0], R * x.shape[2], R * x.shape[3])


def _run(x: Tensor, convs: list[Conv], scales: Sequence[int], impl: str) -> Tensor:
    """x in the dtype of the result; the weights in theirs."""
    dtype = x.dtype
    y, x_axis = axes_of(convs, scales)
    too_small = x.shape[2] < y.smallest or x.shape[3] < x_axis.smallest
    if impl == "eager" or too_small:  # an image that is all frame: the chain is small there
        converted = [(w.to(dtype), None if b is None else b.to(dtype)) for w, b in convs]
        return pixelshuffle_tail_reference(x, converted, scales)
    if impl == "triton":
        from ipt_fast.kernels.pixelshuffle_tail import pixelshuffle_tail_forward

        tail = _class_kernels(convs, scales, dtype)
        return pixelshuffle_tail_forward(x, tail.kernels, tail.bias, tail.scale, tail.frame)
    # CPUs have no fast float16 convolution; float32 is both faster and closer.
    work = torch.float32 if x.device.type == "cpu" and dtype == torch.float16 else dtype
    return apply(x.to(work), _collapsed(convs, scales, work)).contiguous().to(dtype)


def _why_not(device: str, dtype: torch.dtype | None = None, any_requires_grad: bool = False) -> dict[str, str | None]:
    """Every backend, best first -> None or why it cannot serve."""
    triton = None if device == "meta" else triton_missing(device)
    if triton is None and dtype == torch.float64:
        triton = "has no float64 kernel"
    if triton is None and any_requires_grad:
        triton = "has no backward pass (call it under torch.no_grad())"
    if torch.device(device).type == "cuda" and dtype in (None, torch.float16, torch.bfloat16):
        return {"triton": triton, "collapsed": None, "eager": None}
    # float32 products use no tensor cores in the Triton kernel, and on a CPU it is Triton's interpreter.
    return {"collapsed": None, "eager": None, "triton": triton}


@constant_to_compilers
def _choose(impl: str | None, device: str, dtype: torch.dtype, any_requires_grad: bool, cheaper: bool) -> str:
    reasons = _why_not(device, dtype, any_requires_grad)
    return choose(_OP, impl, reasons if cheaper else {"eager": None, **reasons})


def _needs_fewer_products(convs: Sequence[Conv], scales: Sequence[int]) -> bool:
    """Whether collapsing at least halves the multiplications an image cell; the frame and composing cost a little."""
    y, x = axes_of(convs, scales)
    chain, cells = convs[-1][0].numel() * y.scale**2, 1
    for (weight, _), r in zip(convs[:-1], scales, strict=True):
        chain += weight.numel() * cells
        cells *= r * r
    return 2 * convs[-1][0].shape[0] * y.scale**2 * convs[0][0].shape[1] * y.width * x.width <= chain


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
    tensors = tensors_of(pairs)
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
        impl: "triton" (one fused kernel, inference only), "collapsed" (one convolution and a frame) or "eager" (the
            chain), see ``backend_status``; None chooses: the chain where collapsing would not halve the work, as for a
            1x1 convolution to many channels.

    Returns:
        [B, C_out, R H, R W] with R the product of ``scales``; dtype of x, or autocast's.

    Raises:
        ValueError: shapes that do not fit together, even kernels, an unknown backend.
        TypeError: no floating-point tensors, or x and weights of different dtypes outside autocast.
        RuntimeError: the backend asked for cannot serve the call.
    """
    pairs = _check(x, convs, scales)
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _serve(x.to(dtype), pairs, scales, impl)
    for t in tensors_of(pairs):
        if t.dtype != x.dtype:
            raise TypeError(f"{_OP}: x is {x.dtype}, a weight {t.dtype}; use one dtype or torch.autocast")
    return _serve(x, pairs, scales, impl)


def _serve(x: Tensor, convs: list[Conv], scales: Sequence[int], impl: str | None) -> Tensor:
    if impl is None and (torch.compiler.is_exporting() or torch.jit.is_tracing()):
        return pixelshuffle_tail_reference(x, convs, scales)  # in operations that every other runtime knows
    wanted = any_requires_grad([x, *tensors_of(convs)])
    backend = _choose(impl, str(x.device), x.dtype, wanted, _needs_fewer_products(convs, scales))
    if torch.compiler.is_compiling() and not wanted:
        weights, biases = [w for w, _ in convs], [b for _, b in convs]
        return torch.ops.ipt_fast.pixelshuffle_tail(x, weights, biases, list(scales), backend)
    return _run(x, convs, scales, backend)


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


def backend_status(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Every backend in the order of automatic choice on ``device`` -> None, or why this machine cannot run it."""
    return _why_not(str(device))


__all__ = [
    "PixelShuffleTail",
    "backend_status",
    "forget",
    "pixelshuffle_tail",
    "pixelshuffle_tail_reference",
    "unlike_plain",
]
