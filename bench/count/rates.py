"""What devices reach, for the prediction, and what they cannot exceed, for the bounds; each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ipt_fast.gpus import GPUS


@dataclass(frozen=True)
class Device:
    """A device and its rates: those that a good kernel reaches, not those of the data sheet.

    Attributes:
        name: as people say it.
        capability: None for a CPU.
        memory: bytes.
        bandwidth: bytes a second, read plus written.
        flops: FLOP/s of a large GEMM by dtype.
        shares: of the GEMM rate that a kind reaches.
        launch: seconds that a kernel takes however small it is.
        host: seconds of the host for a launch.
    """

    name: str
    capability: tuple[int, int] | None
    memory: int
    bandwidth: float
    flops: Mapping[str, float]
    shares: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    launch: float = 2e-6
    host: float = 5e-6


# GEMM rates are those of ``ipt_fast.gpus``. Bandwidth: what copies are reported to reach, 85 to 90 % of the data
# sheet's. Shares: estimates after published kernels of such shapes. Nothing here was measured by this project.
_SHARES = MappingProxyType({"gemm": 0.65, "convolution": 0.25, "patch_attention": 0.35, "patch_contrastive_loss": 0.45})
_SHARES_V100 = MappingProxyType(
    {"gemm": 0.75, "convolution": 0.3, "patch_attention": 0.4, "patch_contrastive_loss": 0.6}
)
# Of 8 bits the data sheet has twice the rate of 16.
_H100 = MappingProxyType({**GPUS["h100"].gemm, "float8_e4m3fn": 2 * GPUS["h100"].gemm["bfloat16"]})
DEVICES = {
    "v100": Device("V100", GPUS["v100"].capability, 32 << 30, 0.79e12, GPUS["v100"].gemm, _SHARES_V100, 3e-6),
    "a100": Device("A100", GPUS["a100"].capability, 80 << 30, 1.7e12, GPUS["a100"].gemm, _SHARES),
    "h100": Device("H100", GPUS["h100"].capability, 80 << 30, 2.9e12, _H100, _SHARES),
}


@dataclass(frozen=True)
class Peak:
    """What no kernel can exceed on a device, and what its multiprocessors (SMs) hold.

    Attributes:
        clock: a second.
        hbm: bytes a second, read plus written.
        l2: bytes a clock that the L2 cache gives to all SMs.
        l2_port: bytes a clock that one SM takes from it.
        tensor: FLOPs a clock and SM, 16-bit inputs and float32 sums.
        exp: results of exp2, log2, sqrt a clock and SM.
        alu: instructions of single threads that an SM starts a clock: four schedulers, one warp each.
        warps, blocks, registers, shared: what an SM holds, shared in bytes; each block takes ``reserved`` more.
    """

    sms: int
    clock: float
    hbm: float
    l2: float
    tensor: float
    shared: int
    reserved: int = 1024
    l2_port: float = 64
    exp: float = 16
    alu: float = 128
    warps: int = 64
    blocks: int = 32
    registers: int = 65536


# SMs, clock, HBM and tensor rate: NVIDIA's data sheets of the SXM cards (V100 125, A100 312, H100 989 TFLOP/s, the last
# at 1.83 GHz). L2: the A100 white paper gives 2,048 bytes a clock for V100 and 5,120 for A100; for H100 there is no
# figure, so A100's; microbenchmarks reach 55 to 75 % of them. The rest: CUDA C++ Programming Guide, arithmetic
# throughput and technical specifications by compute capability.
PEAKS = {
    "v100": Peak(80, 1.53e9, 0.9e12, 2048, 1024, 96 << 10, reserved=0),
    "a100": Peak(108, 1.41e9, 2.039e12, 5120, 2048, 164 << 10),
    "h100": Peak(132, 1.83e9, 3.35e12, 5120, 4096, 228 << 10),
}
