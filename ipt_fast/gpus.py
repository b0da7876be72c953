"""NVIDIA GPUs that this project plans for, by the names people say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_HALF_AND_FULL = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class GPU:
    """Compute capability, and the FLOP/s of a large GEMM by dtype, as far as known."""

    capability: tuple[int, int]
    gemm: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def _rates(*rates: float) -> Mapping[str, float]:
    return MappingProxyType({dtype: rate for dtype, rate in zip(_HALF_AND_FULL, rates, strict=True) if rate})


# What cuBLAS is reported to reach (H100 SXM 798 TFLOP/s in bf16, V100 100 in fp16); none was measured by this project.
GPUS = {
    "v100": GPU((7, 0), _rates(100e12, 0, 14e12)),
    "t4": GPU((7, 5)),
    "a100": GPU((8, 0), _rates(270e12, 270e12, 18e12)),
    "h100": GPU((9, 0), _rates(798e12, 798e12, 50e12)),
}


def find_gpu(name: str) -> GPU | None:
    """Return the GPU that a device's name tells of; None for others, and for PCIe cards, which are slower."""
    words = name.lower().replace("-", " ").split()
    return None if "pcie" in words else next((GPUS[word] for word in words if word in GPUS), None)
