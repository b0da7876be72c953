"""Every kernel of ``csrc/``: which instance of its template serves which GPU, and what a launch of it needs."""

from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
# What the wheel holds machine code for. Later GPUs of a generation run that of its first one.
ARCHS = (70, 75, 80, 90)


@dataclass(frozen=True)
class Kernel:
    """One instance of a template of ``csrc/`` and what its launch needs."""

    direction: str
    d: int
    threads: int
    shared: int  # dynamic, bytes
    rows: int  # queries (forward) or keys (backward) a block
    blocks: int  # at the same time on a multiprocessor of sm_70
    archs: tuple[int, ...] = ARCHS

    @property
    def source(self) -> Path:
        """The file that it is in."""
        return CSRC / f"{self.name}.cu"

    @property
    def name(self) -> str:
        """The template's name."""
        return f"patch_attention_{self.direction}"

    @property
    def expression(self) -> str:
        """Its address in C++."""
        warps = ", 4" if self.archs == (75,) else ""
        return f"&ipt_fast::{self.name}<{self.d}{warps}>"


KERNELS = (
    Kernel("forward", 32, 128, 21_504, 128, 3),
    Kernel("forward", 48, 128, 23_552, 128, 3),
    Kernel("forward", 64, 128, 29_696, 128, 2),
    Kernel("backward", 32, 256, 82_448, 256, 1, (70, 80, 90)),
    Kernel("backward", 48, 256, 90_640, 256, 1, (70, 80, 90)),
    Kernel("backward", 64, 256, 95_504, 256, 1, (70, 80, 90)),
    # A block of sm_75 has 64 KB.
    Kernel("backward", 32, 128, 35_088, 128, 1, (75,)),
    Kernel("backward", 48, 128, 39_184, 128, 1, (75,)),
    Kernel("backward", 64, 128, 52_496, 128, 1, (75,)),
)
HEAD_DIMS = tuple(k.d for k in KERNELS if k.direction == "forward")


def arch_of(capability: tuple[int, int]) -> int:
    """Return the architecture whose code a GPU runs: the newest of its generation here, otherwise its own."""
    own = 10 * capability[0] + capability[1]
    return max((arch for arch in ARCHS if arch // 10 == capability[0] and arch <= own), default=own)


def kernels_of(source: Path, arch: int) -> list[Kernel]:
    """Return the kernels of one file for one architecture; those that are newer than this table are taken for sm_90."""
    return [k for k in KERNELS if k.source == source and min(arch, ARCHS[-1]) in k.archs]


def kernel_of(direction: str, d: int, arch: int) -> Kernel:
    """Return the kernel that serves a head size on an architecture."""
    (kernel,) = (k for k in KERNELS if (k.direction, k.d) == (direction, d) and min(arch, ARCHS[-1]) in k.archs)
    return kernel
