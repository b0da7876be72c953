"""Compile ``csrc/*.cu`` for GPUs that are not here and read what the assembler says: nvcc where it is, and NVRTC 12.6.

NVRTC 12.6 is there for sm_70, which CUDA 13 refuses. It needs no driver:
pip install --no-deps nvidia-cuda-nvrtc-cu12==12.6.85 nvidia-cuda-runtime-cu12==12.6.77 nvidia-cuda-nvcc-cu12==12.6.85
"""

import ctypes
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.ptx_facts import PtxFacts
from ipt_fast.cuda.kernels import CSRC, KERNELS, kernels_of

NVRTC_ARCHS, NVCC_ARCHS = (70,), (75, 80, 90)
# Shared memory that a block of sm_70 has, with the opt-in that more than 48 KB need.
SHARED = 96 << 10
HEADING = "## CUDA C++ (`csrc/`)"  # of the section that bench.csrc_report writes into bench/results/offline.md

_TENSOR_CORE = re.compile(r"(?<![\w.])(?:wmma\.mma|mma)\.sync\.aligned\.")


def sources() -> list[Path]:
    """Return all CUDA files of ``csrc/``."""
    return sorted(CSRC.glob("*.cu"))


def compilers() -> dict[str, tuple[tuple[int, ...], Callable[..., PtxFacts]]]:
    """Return name -> (architectures, compile) of what is installed here."""
    found: dict[str, tuple[tuple[int, ...], Callable[..., PtxFacts]]] = {}
    if nvrtc_folder() is not None:
        found["NVRTC 12"] = NVRTC_ARCHS, compile_nvrtc
    if shutil.which("nvcc"):
        found["nvcc"] = NVCC_ARCHS, compile_nvcc
    return found


def nvrtc_folder() -> Path | None:
    """Return the folder ``nvidia`` of the installed packages, where it holds NVRTC 12 and CUDA's headers."""
    spec = importlib.util.find_spec("nvidia")
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        root = Path(folder)
        if (root / "cuda_nvrtc/lib/libnvrtc.so.12").exists() and (root / "cuda_nvcc/include/crt/mma.h").exists():
            return root
    return None


def compile_nvcc(source: Path, arch: int, *expressions: str) -> PtxFacts:
    """Compile with nvcc: the kernels named, or all that ``KERNELS`` has of ``source``.

    Raises:
        RuntimeError: the compiler refuses the file; with its words.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Templates come to be by somebody's taking their address.
        wanted = ", ".join(f"reinterpret_cast<void*>({e})" for e in _wanted(source, arch, expressions))
        unit, ptx = Path(folder) / "kernel.cu", Path(folder) / "kernel.ptx"
        unit.write_text(f'#include "{source}"\n' + (f"void* kernels[] = {{{wanted}}};\n" if wanted else ""))
        _run(["nvcc", f"-arch=sm_{arch}", "-O3", "-std=c++17", "-ptx", str(unit), "-o", str(ptx)])
        log = _run(["nvcc", f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin", str(ptx), "-o", f"{folder}/kernel.cubin"])
        return _facts(source, arch, log, ptx.read_text(), expressions)


def compile_nvrtc(source: Path, arch: int, *expressions: str) -> PtxFacts:
    """Compile with NVRTC, device code alone; otherwise as ``compile_nvcc``."""
    code = nvrtc(source.read_text(), arch, _wanted(source, arch, expressions), source.parent)
    return _facts(source, arch, code.log, code.ptx, expressions)


@dataclass(frozen=True)
class Compiled:
    """What NVRTC returns."""

    cubin: bytes
    ptx: str
    log: str


def nvrtc(text: str, arch: int, expressions: Sequence[str], folder: Path = CSRC) -> Compiled:
    """Compile source text. Raises RuntimeError with the compiler's words where it refuses it."""
    root = nvrtc_folder()
    if root is None:
        raise RuntimeError("NVRTC 12 is not installed")
    for part in (root / "cuda_nvrtc/lib").glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(part))
    library = ctypes.CDLL(str(root / "cuda_nvrtc/lib/libnvrtc.so.12"))
    program = ctypes.c_void_p()
    if library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None):
        raise RuntimeError("NVRTC takes no program")
    for expression in expressions:
        library.nvrtcAddNameExpression(program, expression.encode())
    options = [f"--gpu-architecture=sm_{arch}", "--std=c++17", "-default-device", "--ptxas-options=-v", f"-I{folder}"]
    options += [f"-I{path}" for path in root.glob("*/include")]
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = library.nvrtcCompileProgram(program, len(options), words)

    def output(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    log = output("ProgramLog").rstrip(b"\0").decode()
    if code:
        raise RuntimeError(log.strip()[:500])
    return Compiled(output("CUBIN"), output("PTX").rstrip(b"\0").decode(), log)


def _wanted(source: Path, arch: int, expressions: Sequence[str]) -> Sequence[str]:
    return expressions or [k.expression for k in kernels_of(source, arch)]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[:500])
    return done.stdout + done.stderr


def _facts(source: Path, arch: int, log: str, ptx: str, expressions: Sequence[str]) -> PtxFacts:
    """Of several kernels: the most registers and shared memory, all tensor-core instructions and spills."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    if not registers:
        raise RuntimeError(f"the assembler reports no kernel: {log.strip()[:500]}")
    dynamic = [k.shared for k in KERNELS if k.source == source and k.expression in _wanted(source, arch, expressions)]
    return PtxFacts(
        arch=f"sm_{arch}",
        registers=max(registers),
        shared=max(dynamic + [int(n) for n in re.findall(r"(\d+) bytes smem", log)], default=0),
        mma=len(_TENSOR_CORE.findall(ptx)),
        spills=sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)),
    )
