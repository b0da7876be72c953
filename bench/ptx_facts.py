"""Compile one Triton kernel for a GPU that is not here and read what the assembler says about it.

Needs no driver. Works in a process where Triton's interpreter is off: with it on, ``@triton.jit`` makes interpreted
functions that cannot be compiled.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from bench.offline_cases import OfflineCase
from bench.offsets import narrow_pointers

# Shared memory that one block can opt in to, bytes (CUDA C++ Programming Guide, table of compute capabilities).
SHARED_LIMIT = {70: 98_304, 75: 65_536, 80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}

_TENSOR_CORE = re.compile(
    r"(?<![\w.])(?:(?:mma\.sync|wgmma\.mma_async\.sync)\.aligned\.m\d+n\d+k\d+|tcgen05\.mma\.cta_group)"
)


@dataclass(frozen=True)
class PtxFacts:
    """What a compiled kernel uses. ``shared`` and ``spills`` in bytes; ``mma`` counts tensor-core instructions;
    ``narrow`` names the pointers that are reached by 32-bit offsets alone.
    """

    arch: str
    registers: int
    shared: int
    mma: int
    spills: int
    narrow: tuple[str, ...] = ()


def compile_case(case: OfflineCase, capability: int) -> PtxFacts:
    """Compile ``case`` for ``capability`` (80 means 8.0).

    Raises:
        ValueError: an argument of the kernel has neither a type nor a constant, or a name is no argument.
        RuntimeError: the assembler refuses the kernel.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = case.fn
    while not hasattr(fn, "arg_names") or hasattr(fn, "configs"):
        fn = fn.fn
    given = {**case.types, **case.consts}
    pointers = [name for name, kind in case.types.items() if kind.startswith("*")]
    missing = [name for name in fn.arg_names if name not in given]
    unknown = [name for name in (*given, *case.align16) if name not in fn.arg_names]
    if missing or unknown:
        raise ValueError(
            f"{case.op} {case.kernel_name}: arguments without a type or constant: {missing}; "
            f"names that are no argument: {unknown}; the kernel's arguments are {list(fn.arg_names)}"
        )
    source = ASTSource(
        fn,
        signature={name: case.types.get(name, "constexpr") for name in fn.arg_names},
        constexprs=dict(case.consts),
        attrs={(fn.arg_names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, *case.align16)},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": case.fp_fusion}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    facts = read_ptx(compiled.asm["ptx"], compiled.metadata.shared, Path(triton.__file__).parent)
    return replace(facts, narrow=tuple(sorted(narrow_pointers(compiled.asm["ttir"]))))


def read_ptx(ptx: str, dynamic_shared: int, triton_root: Path) -> PtxFacts:
    """Assemble ``ptx`` with the assembler that Triton brings and read its report."""
    target = re.search(r"\.target\s+(\w+)", ptx)
    if target is None:
        raise RuntimeError("the compiled kernel names no target: not PTX")
    report = _assemble(ptx, target[1], triton_root / "backends" / "nvidia" / "bin")
    return PtxFacts(
        arch=target[1],
        registers=_number(r"Used (\d+) registers", report),
        shared=dynamic_shared + sum(int(n) for n in re.findall(r"(\d+) bytes smem", report)),
        mma=len(_TENSOR_CORE.findall(ptx)),
        spills=_number(r"(\d+) bytes spill stores", report) + _number(r"(\d+) bytes spill loads", report),
    )


def _assemble(ptx: str, arch: str, tools: Path) -> str:
    # Newer Triton emits a PTX version that only its second assembler reads, also for sm_90.
    report = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        for tool in ("ptxas", "ptxas-blackwell"):
            if not (tools / tool).exists():
                continue
            command = [str(tools / tool), "-v", f"--gpu-name={arch}", str(path), "-o", str(path.with_suffix(".cubin"))]
            done = subprocess.run(command, capture_output=True, text=True)
            report = done.stdout + done.stderr
            if done.returncode == 0:
                return report
    raise RuntimeError(f"ptxas refuses the kernel for {arch}: {report.strip()[:500] or f'no assembler in {tools}'}")


def _number(pattern: str, report: str) -> int:
    found = re.search(pattern, report)
    if found is None:
        raise RuntimeError(f"ptxas reports no {pattern!r}: {report.strip()[:500]}")
    return int(found[1])
