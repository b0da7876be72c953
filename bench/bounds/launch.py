"""What one launch of a kernel does, whatever the device makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.offline_cases import OfflineCase
from ipt_fast.cuda.kernels import Kernel


@dataclass(frozen=True)
class Work:
    """The work of one launch.

    Attributes:
        hbm: bytes that memory must move: each tensor once.
        l2: bytes that the programs ask of the L2 cache; what L1 or shared memory keeps counts once a program.
        tensor: FLOPs of the tensor cores, padding of tiles included.
        exp: results of exp2, log2 and sqrt, of single threads.
        alu: the least other instructions of single threads that the arithmetic needs; addresses are left out.
    """

    hbm: float
    l2: float
    tensor: float = 0.0
    exp: float = 0.0
    alu: float = 0.0


@dataclass(frozen=True)
class Launch:
    """A kernel at a shape: ``programs`` do ``work`` together, ``times`` times in a call of the op.

    ``code``: what to compile. ``direction``: of the measurement to compare with, or
    "" where a benchmark times more than this kernel.
    """

    op: str
    kernel: str
    shape: str
    B: int
    programs: int
    warps: int
    work: Work
    code: OfflineCase | Kernel
    times: int = 1
    direction: str = ""


def launch(case: OfflineCase, shape: str, B: int, programs: int, work: Work, **options: int | str) -> Launch:
    """Return the launch of a registered kernel."""
    return Launch(case.op, case.kernel_name, shape, B, programs, case.num_warps, work, case, **options)  # type: ignore


def find_case(cases: Sequence[OfflineCase], kernel: str, label: str) -> OfflineCase:
    """Return the case of a kernel by its label.

    Raises:
        LookupError: none has it, or several.
    """
    found = [case for case in cases if (case.kernel_name, case.describe()) == (kernel, label)]
    if len(found) != 1:
        raise LookupError(f'{len(found)} offline cases of kernel "{kernel}" are labelled "{label}"; one is needed')
    return found[0]


def tiles(size: int, tile: int) -> int:
    """Return how many tiles cover ``size``."""
    return -(-size // tile)
