"""What pixelshuffle_tail asks of its arguments."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ipt_fast.ops._common import autocast_dtype, check_integer, check_tensor
from ipt_fast.ops._pixelshuffle_tail_compose import Conv

_OP = "pixelshuffle_tail"


def tensors_of(convs: Sequence[Conv]) -> list[Tensor]:
    """Return weights and biases in order."""
    return [t for conv in convs for t in conv if t is not None]


def checked_scales(scales: Sequence[int]) -> tuple[int, ...]:
    """Return the factors of PixelShuffles."""
    _check_sequence("scales", scales)
    for i, r in enumerate(scales):
        check_integer(_OP, f"scales[{i}]", r, 1)
    return tuple(scales)


def _check_sequence(name: str, given: Any) -> None:
    # nn.ModuleList is registered as no Sequence.
    if isinstance(given, (str, bytes, dict, set, Tensor)) or not (
        hasattr(given, "__iter__") and hasattr(given, "__len__")
    ):
        raise TypeError(f"{_OP}: {name} must be a sequence (got {type(given).__name__})")


def checked_chain(convs: Any, scales: Sequence[int]) -> tuple[list[Conv], tuple[int, ...]]:
    """Return weights and biases, and the scales, of a chain that fits together."""
    _check_sequence("convs", convs)
    scales = checked_scales(scales)
    if len(convs) != len(scales) + 1:
        raise ValueError(
            f"{_OP}: needs a convolution before each PixelShuffle and one after the last, so one more than scales "
            f"(got {len(convs)} convolutions, {len(scales)} scales)"
        )
    pairs = [_pair(conv, i) for i, conv in enumerate(convs)]
    channels = None
    for i, ((weight, bias), r) in enumerate(zip(pairs, [*scales, 1], strict=True)):
        if weight.dim() != 4 or 0 in weight.shape or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            raise ValueError(f"{_OP}: convs[{i}] needs a weight [out, in, odd, odd] (got shape {list(weight.shape)})")
        out = weight.shape[0]
        if channels is not None and weight.shape[1] != channels:
            raise ValueError(f"{_OP}: convs[{i}] takes {weight.shape[1]} channels, but {channels} come in")
        if out % (r * r):
            raise ValueError(f"{_OP}: convs[{i}] gives {out} channels, no multiple of {r}^2 for PixelShuffle({r})")
        if bias is not None and bias.shape != (out,):
            raise ValueError(f"{_OP}: convs[{i}] needs a bias of shape [{out}] (got {list(bias.shape)})")
        channels = out // (r * r)
    if any(t.device != pairs[0][0].device for t in tensors_of(pairs)):
        raise ValueError(f"{_OP}: the weights lie on several devices; move them to one")
    return pairs, scales


def check_input(x: Tensor, tensors: Sequence[Tensor]) -> None:
    """Raise unless ``x`` goes with a chain's weights and biases in shape, device and, outside autocast, dtype."""
    check_tensor(_OP, "x", x, shape="[B, C, H, W]")
    if x.dim() != 4 or not all(x.shape[1:]):
        raise ValueError(f"{_OP}: x must be [B, C, H, W] with C, H, W >= 1 (got shape {list(x.shape)})")
    weight = tensors[0]
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"{_OP}: convs[0] takes {weight.shape[1]} channels, but {x.shape[1]} come in")
    if weight.device != x.device:
        raise ValueError(f"{_OP}: x is on {x.device}, the weights are on {weight.device}; move them to one device")
    if autocast_dtype(x.device.type) is None and any(t.dtype != x.dtype for t in tensors):
        other = next(t.dtype for t in tensors if t.dtype != x.dtype)
        raise TypeError(f"{_OP}: x is {x.dtype}, a weight {other}; use one dtype or torch.autocast")


def _pair(conv, index: int) -> Conv:
    name = f"convs[{index}]"
    if isinstance(conv, nn.Conv2d):
        if reason := unlike_plain(conv):
            raise ValueError(f"{_OP}: {name} {reason}; only plain convolutions can be collapsed")
        weight, bias = conv.weight, conv.bias
    elif isinstance(conv, Tensor):
        weight, bias = conv, None
    elif isinstance(conv, (tuple, list)) and len(conv) == 2:
        weight, bias = conv
    else:
        raise TypeError(f"{_OP}: {name} must be an nn.Conv2d, a weight or (weight, bias) (got {type(conv).__name__})")
    check_tensor(_OP, f"the weight of {name}", weight)
    if bias is None:
        return weight.resolve_neg(), None
    check_tensor(_OP, f"the bias of {name}", bias)
    return weight.resolve_neg(), bias.resolve_neg()


def unlike_plain(conv: nn.Conv2d) -> str | None:
    """Return why a convolution is none that this op can stand for, or None: stride 1, k // 2 zeros, no groups."""
    if isinstance(conv.weight, nn.UninitializedParameter):  # compilers cannot follow is_lazy
        return "has no weights yet"
    half = tuple(k // 2 for k in conv.kernel_size)
    if any(k % 2 == 0 for k in conv.kernel_size):
        return f"has an even kernel {conv.kernel_size}"
    if conv.stride != (1, 1) or conv.dilation != (1, 1) or conv.groups != 1:
        return f"has stride {conv.stride}, dilation {conv.dilation}, groups {conv.groups}; needs 1"
    if conv.padding_mode != "zeros" or (conv.padding != half and conv.padding != "same"):
        return f"has padding {conv.padding} ({conv.padding_mode}); needs {half} zeros"
    return None
