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
from collections.abc import Callable
from pathlib import Path

from bench.ptx_facts import PtxFacts

CSRC = Path(__file__).resolve().parent.parent / "csrc"
NVRTC_ARCHS, NVCC_ARCHS = (70,), (75, 80, 90)
# Shared memory that a block has without opting in to more, as these kernels are launched.
SHARED = 48 << 10

_TENSOR_CORE = re.compile(r"(?<![\w.])(?:wmma\.mma|mma)\.sync\.aligned\.")


def sources() -> list[Path]:
    """Return all CUDA files of ``csrc/``."""
    return sorted(CSRC.glob("*.cu"))


def compilers() -> dict[str, tuple[tuple[int, ...], Callable[[Path, int], PtxFacts]]]:
    """Return name -> (architectures, compile) of what is installed here."""
    found: dict[str, tuple[tuple[int, ...], Callable[[Path, int], PtxFacts]]] = {}
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


def compile_nvcc(source: Path, arch: int) -> PtxFacts:
    """Compile with nvcc. Raises RuntimeError with the compiler's words where it refuses the file."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        common = ["nvcc", f"-arch=sm_{arch}", "-O3", "-std=c++17", str(source)]
        log = _run([*common, "-Xptxas", "-v", "-c", "-o", f"{folder}/kernel.o"])
        _run([*common, "-ptx", "-o", str(ptx)])
        return _facts(arch, log, ptx.read_text())


def compile_nvrtc(source: Path, arch: int) -> PtxFacts:
    """Compile the device code alone. Raises RuntimeError with the compiler's words where it refuses the file."""
    root = nvrtc_folder()
    if root is None:
        raise RuntimeError("NVRTC 12 is not installed")
    for part in (root / "cuda_nvrtc/lib").glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(part))
    library = ctypes.CDLL(str(root / "cuda_nvrtc/lib/libnvrtc.so.12"))
    program = ctypes.c_void_p()
    if library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), b"kernel.cu", 0, None, None):
        raise RuntimeError("NVRTC takes no program")
    options = [f"--gpu-architecture=sm_{arch}", "--std=c++17", "-default-device", "--ptxas-options=-v"]
    options += [f"-I{path}" for path in root.glob("*/include")]
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = library.nvrtcCompileProgram(program, len(options), words)

    def text(what: str) -> str:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode()

    log = text("ProgramLog")
    if code:
        raise RuntimeError(log.strip()[:500])
    return _facts(arch, log, text("PTX"))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[:500])
    return done.stdout + done.stderr


def _facts(arch: int, log: str, ptx: str) -> PtxFacts:
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    if not registers:
        raise RuntimeError(f"the assembler reports no kernel: {log.strip()[:500]}")
    return PtxFacts(
        arch=f"sm_{arch}",
        registers=max(registers),
        shared=max([int(n) for n in re.findall(r"(\d+) bytes smem", log)], default=0),
        mma=len(_TENSOR_CORE.findall(ptx)),
        spills=sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)),
    )
