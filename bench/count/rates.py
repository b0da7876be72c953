"""What devices reach, for the prediction: a table of rates, each with where it comes from."""

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
DEVICES = {
    "v100": Device("V100", GPUS["v100"].capability, 32 << 30, 0.79e12, GPUS["v100"].gemm, _SHARES_V100, 3e-6),
    "a100": Device("A100", GPUS["a100"].capability, 80 << 30, 1.7e12, GPUS["a100"].gemm, _SHARES),
    "h100": Device("H100", GPUS["h100"].capability, 80 << 30, 2.9e12, GPUS["h100"].gemm, _SHARES),
}
