"""Products at inference in bfloat16 on a CPU, with weights that oneDNN has laid out once.

``F.linear`` casts the weight, under autocast, lays it out anew for every product, writes the bias into the result first
and leaves the ReLU to another pass. Here the weight is cast and laid out once, and bias and ReLU end the product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ipt_fast.acceleration._hooks import reason_not_fusable
from ipt_fast.model.norm import compute_dtype
from ipt_fast.model.steps import optimizer_steps
from ipt_fast.ops._common import any_requires_grad, has_fast_bf16

_PACKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # weight -> (its state, the weight laid out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """x W^T + b, and where asked for its ReLU: [..., D] -> [..., D_out] in the dtype of products.

    A laid-out weight is kept until the weight changes, an optimizer steps, or a call learns. Writes through ``.data``
    alone go unseen: call ``forget`` after those.
    """
    if not any_requires_grad((x, weight, bias)):
        packed = _packed(x, weight)
        if packed is not None:
            b = None if bias is None else bias.to(torch.bfloat16)
            end = "relu" if relu else "none"
            return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), packed, b, end, [], "")
    elif not torch.compiler.is_compiling():
        forget(weight)
    out = F.linear(x, weight, bias)
    return F.relu_(out) if relu else out


def is_plain(module: nn.Module) -> bool:
    """Whether ``linear`` may stand for a module: an nn.Linear that nobody has replaced, hooked or wrapped."""
    return type(module) is nn.Linear and reason_not_fusable(module) is None


def forget(*weights: Tensor) -> None:
    """Drop what is kept of these weights."""
    for weight in weights:
        _PACKED.pop(weight, None)


def _packed(x: Tensor, weight: Tensor) -> Tensor | None:
    """The weight laid out for products in bfloat16; None where there are none to be had."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not (x.is_cpu and weight.is_cpu):
        return None
    if compute_dtype(x) != torch.bfloat16 or type(weight) not in (Tensor, nn.Parameter) or not _available():
        return None
    if weight._is_view():  # gone with the call, and what is kept of it too
        return None
    try:
        state = (weight._version, optimizer_steps(), weight.data_ptr(), weight.shape, weight.dtype)
    except RuntimeError:  # inference tensors count no versions, functorch's have no address
        return None
    found = _PACKED.get(weight)
    if found is None or found[0] != state:
        with torch.inference_mode(False), torch.no_grad():
            found = state, torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(torch.bfloat16))
        _PACKED[weight] = found
    return found[1]


def _available() -> bool:
    """The two operations are those that ``torch.compile`` calls for frozen weights."""
    return (
        has_fast_bf16()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
