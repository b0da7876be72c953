"""Linear layers of weights that stay: as they are, prepacked, or of 8 bits.

In 8 bits a weight row and a token each have a scale, the largest |x| over the largest 8-bit value; a token's is taken
at every call. GEMMs of 8-bit integers sum in int32, which is exact; scales and bias are applied to their sums.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.ops._common import has_fast_bf16

_log = logging.getLogger(__name__)
_FP8 = torch.float8_e4m3fn
_FP8_SINCE = (8, 9)  # Ada; Hopper is 9.0
EIGHT_BITS = (torch.int8, _FP8)

# (weight, bias, dtype of what goes in and comes out, "relu" or "none") -> linear layer
Maker = Callable[[Tensor, Tensor | None, torch.dtype, str], nn.Module]


@dataclass(frozen=True)
class Arithmetic:
    """What a prepared network computes in: ``dtype`` outside its linear layers, and who makes those."""

    dtype: torch.dtype
    make: Maker

    def linear(self, weight: Tensor, bias: Tensor | None, end: str = "none") -> nn.Module:
        """Return a linear layer; ``end``: "relu" where the layer can end with it, as its attribute ``end`` tells."""
        return self.make(weight, bias, self.dtype, end)


def arithmetic(dtype: torch.dtype, device: torch.device) -> Arithmetic:
    """Return how a network of that dtype computes on that device.

    Raises:
        ValueError: a dtype of 8 bits that the device has no GEMMs of.
    """
    if dtype == torch.int8:
        if device.type != "cpu":
            raise ValueError(
                f"prepare_for_inference: dtype=torch.int8 is for CPUs (found {device.type}); move the model to the "
                "CPU, or take torch.bfloat16, or torch.float8_e4m3fn on a GPU of capability 8.9 or newer"
            )
        if not has_int8_gemm():
            _log.warning(
                "int8: this processor cannot sum 8-bit products exactly; their GEMMs run in float32, no faster"
            )
        return Arithmetic(torch.bfloat16 if has_fast_bf16() else torch.float32, Int8Linear)
    if dtype == _FP8:
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if capability is None or capability < _FP8_SINCE:
            found = device.type if capability is None else f"capability {capability[0]}.{capability[1]}"
            raise ValueError(
                f"prepare_for_inference: dtype=torch.float8_e4m3fn needs a CUDA device of capability 8.9 or newer "
                f"(found {found}); take torch.bfloat16, or torch.int8 on a CPU"
            )
        return Arithmetic(torch.bfloat16, Float8Linear)
    return Arithmetic(dtype, linear_of)


def linear_of(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, end: str) -> nn.Module:
    """Return a linear layer of these weights, prepacked where that serves."""
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if PackedLinear.serves(weight):
        return PackedLinear(weight, bias, end)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())
    return linear


class PackedLinear(nn.Module):
    """x W^T + b, and where asked for its ReLU, in bfloat16 on a CPU, the weight reordered for oneDNN.

    The two operators are those that ``torch.compile`` calls for frozen weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, end: str = "none"):
        super().__init__()
        self.end = end
        self._set(weight, bias)

    def _set(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)  # no parameter: it has no strides
        self.bias = None if bias is None else bias.clone()

    @staticmethod
    def serves(x: Tensor) -> bool:
        """Return whether prepacked weights would serve GEMMs with x here."""
        return (
            x.is_cpu
            and x.dtype == torch.bfloat16
            and has_fast_bf16()
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D_out]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.end, [], "")

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["packed"] = self.packed.to_dense()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set(self.packed, self.bias)


class _ScaledLinear(nn.Module):
    """x W^T + b, and where asked for its ReLU, with 8-bit rows of W [D_out, D] and of x, a scale each."""

    top: float
    values: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, end: str):
        super().__init__()
        self.end, self.dtype = end, dtype
        scaled, scale = scaled_rows(weight.float(), self.top)
        self.register_buffer("values", self._eight_bits(scaled))
        self.register_buffer("scale", scale[:, 0])  # [D_out], float32
        zeros = torch.zeros(len(weight), dtype=dtype, device=weight.device)
        self.register_buffer("bias", zeros if bias is None else bias.to(dtype, copy=True))

    def _eight_bits(self, scaled: Tensor) -> Tensor:
        raise NotImplementedError

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return scaled_rows(x, self.top)

    def _product(self, scaled: Tensor, scale: Tensor) -> Tensor:
        """Rows [M, D] within +-``top`` and their scales [M, 1] -> [M, D_out], bias and all."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D_out]."""
        y = self._product(*self._rows(x.reshape(-1, x.shape[-1]))).view(*x.shape[:-1], -1)
        return F.relu_(y) if self.end == "relu" else y


def scaled_rows(x: Tensor, top: float) -> tuple[Tensor, Tensor]:
    """Return x [M, D] as rows within +-``top``, float32, and their scales [M, 1] in x's dtype: x is their product.

    Scales are rounded up in that dtype, so that no row reaches beyond. Rows of zeros stay such.
    """
    kind = torch.finfo(x.dtype)
    scale = x.abs().amax(-1, keepdim=True).float().mul_((1 + kind.eps) / top).clamp_min_(kind.tiny).to(x.dtype)
    return x * scale.float().reciprocal(), scale


class Int8Linear(_ScaledLinear):
    """Weights and tokens in int8, int32 sums: oneDNN's GEMM, which applies the weights' scales to its sums.

    Where that cannot sum exactly the same integers are multiplied in float32, which is exact up to D = 1,040 and rounds
    beyond.
    """

    top = 127.0

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, end: str):
        super().__init__(weight, bias, dtype, end)
        self._pack()

    def _pack(self) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(self.values, None) if has_int8_gemm() else None

    def _eight_bits(self, scaled: Tensor) -> Tensor:
        return scaled.round_().to(torch.int8)

    def _product(self, scaled: Tensor, scale: Tensor) -> Tensor:
        if self.packed is None:
            sums = F.linear(scaled.round_(), self.values.float()).mul_(self.scale).to(self.dtype)
        else:
            sums = _int8_gemm(self._eight_bits(scaled), self.packed, self.scale, self.dtype)
        return torch.addcmul(self.bias, sums, scale)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()


class Float8Linear(_ScaledLinear):
    """Weights and tokens in float8_e4m3fn on CUDA: one GEMM, which applies scales and bias to its float32 sums."""

    top = torch.finfo(_FP8).max  # 448

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, end: str):
        if weight.shape[0] % 16 or weight.shape[1] % 16:
            raise ValueError(
                "prepare_for_inference: dtype=torch.float8_e4m3fn needs linear layers of multiples of 16, found one of "
                f"{weight.shape[1]} to {weight.shape[0]}; take torch.bfloat16"
            )
        super().__init__(weight, bias, dtype, end)

    def _eight_bits(self, scaled: Tensor) -> Tensor:
        return scaled.to(_FP8)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # In x's own dtype, which has four bits more than what it becomes: fewer bytes and launches.
        largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
        scale = largest.float().clamp_min_(torch.finfo(torch.float32).tiny * self.top).div_(self.top)
        return x * scale.reciprocal().to(x.dtype), scale

    def _product(self, scaled: Tensor, scale: Tensor) -> Tensor:
        scales, values = (scale, self.scale.view(1, -1)), (self._eight_bits(scaled), self.values.t())
        return torch._scaled_mm(*values, *scales, self.bias, out_dtype=self.dtype)


def has_int8_gemm() -> bool:
    """Return whether oneDNN sums 8-bit products exactly here, as with VNNI or AMX; without, 16 bits overflow.

    It is asked for the largest sums there are.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
        return False
    largest = torch.full((64, 64), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(largest, None)
    sums = _int8_gemm(largest, packed, torch.ones(64), torch.float32)
    return bool((sums == 64 * 127**2).all())


def _int8_gemm(x: Tensor, packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x [M, D] int8 -> the sums [M, D_out] times ``scale`` [D_out]."""
    none = torch.zeros(len(scale), dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, packed, scale, none, None, 1.0, 0, dtype, "none", [], "")
