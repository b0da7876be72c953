"""Machine code of a file of ``csrc/``: what the wheel holds, otherwise compiled once by NVRTC and kept in a cache.

Needs no torch: setup.py compiles with it too.
"""

import functools
import hashlib
import importlib.util
import logging
import os
import re
from pathlib import Path

from ipt_fast.cuda.kernels import ARCHS, CSRC, Kernel, kernels_of
from ipt_fast.io.atomic import atomic_write

PACKAGED = Path(__file__).resolve().parent / "cubins"
_HEADERS = {"cudart": "cuda_fp16.h", "nvcc": "crt/mma.h"}  # who brings it -> what the kernels include
_logger = logging.getLogger(__name__)


def packaged_name(source: Path, arch: int) -> str:
    """Return the name of the file that the wheel holds."""
    return f"{source.stem}.sm_{arch}.cubin"


@functools.cache
def unavailable_reason(arch: int) -> str | None:
    """Return why kernels cannot run on GPUs of ``arch``, as the end of a sentence, or None; compiles nothing."""
    if not _has_cuda_core():
        return f"needs the package cuda-core, which is not installed; {_advice(arch)}"
    if all((PACKAGED / packaged_name(source, arch)).exists() for source in sources()):
        return None
    return compiler_missing(arch)


def compiler_missing(arch: int) -> str | None:
    """Return why nothing can be compiled for ``arch`` here, as the end of a sentence, or None."""
    if not _has_cuda_core():
        return f"needs the package cuda-core, which is not installed; {_advice(arch)}"
    from cuda.bindings import nvrtc
    from cuda.pathfinder import DynamicLibNotFoundError

    try:
        archs = nvrtc.nvrtcGetSupportedArchs()[1]
    except DynamicLibNotFoundError:
        return f"needs NVRTC to compile for sm_{arch}, and it is not installed; {_advice(arch)}"
    if arch not in archs:
        return f"needs an NVRTC that compiles for sm_{arch} ({_compiler()} does not); {_advice(arch)}"
    for owner, header in _HEADERS.items():
        if header not in _found_headers():
            return f"needs CUDA's header {header} ({owner}) to compile, and it is not installed; {_advice(arch)}"
    return None


def sources() -> list[Path]:
    """Return all CUDA files of ``csrc/``."""
    return sorted(CSRC.glob("*.cu"))


def cubin(source: Path, arch: int) -> bytes:
    """Return the machine code of a file: of the wheel, of the cache, or compiled now.

    Raises:
        RuntimeError: it cannot be compiled here; says what is missing, or what the compiler says.
    """
    packaged = PACKAGED / packaged_name(source, arch)
    if packaged.exists():
        return packaged.read_bytes()
    if reason := compiler_missing(arch):
        raise RuntimeError(f"{source.name}: {reason}")
    place = cache_folder() / f"{source.stem}.sm_{arch}.{_key(source, arch)}.cubin"
    code = _read(place)
    if code is None:
        code = compile_cubin(source, arch)
        _keep(place, code)
    return code


def compile_cubin(source: Path, arch: int) -> bytes:
    """Compile all kernels of a file for one architecture.

    Raises:
        RuntimeError: the compiler refuses it; with its words.
    """
    from cuda.core import Program, ProgramOptions

    headers = list(dict.fromkeys(_found_headers().values()))
    folders = [str(source.parent), *headers]
    options = ProgramOptions(name=source.name, arch=f"sm_{arch}", std="c++17", include_path=folders)
    program = Program(source.read_text(), "c++", options)
    try:
        return bytes(program.compile("cubin", name_expressions=_expressions(source, arch)).code)
    except Exception as error:  # NVRTCError is no public name
        raise RuntimeError(
            f"{source.name} does not compile for sm_{arch} with {_compiler()} and the headers of {', '.join(headers)}; "
            f"for a set that fits {_advice(arch)}: {error}"
        ) from error


def symbol(code: bytes, kernel: Kernel) -> str:
    """Return the name of a kernel in machine code: templates have long ones."""
    found = re.search(rf"_ZN8ipt_fast\d+{kernel.name}ILi{kernel.d}E\w+".encode(), code)
    if found is None:
        raise RuntimeError(f"the machine code of {kernel.source.name} has no kernel for d = {kernel.d}")
    return found[0].decode()


def cache_folder() -> Path:
    """Return where compiled code is kept: ``IPT_FAST_CACHE``, otherwise ``ipt-fast`` in the user's cache."""
    if chosen := os.environ.get("IPT_FAST_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipt-fast"


def _key(source: Path, arch: int) -> str:
    texts = [path.read_bytes() for path in (source, *sorted(CSRC.glob("*.cuh")))]
    words = "\0".join((_compiler(), f"sm_{arch}", *_expressions(source, arch))).encode()
    return hashlib.sha256(b"\0".join((words, *texts))).hexdigest()[:32]


def _read(place: Path) -> bytes | None:
    """Return the code of a cache file, whose last 32 bytes are its SHA-256; None where there is none to be had."""
    try:
        content = place.read_bytes()
    except OSError:
        return None
    code, digest = content[:-32], content[-32:]
    if hashlib.sha256(code).digest() == digest:
        return code
    _logger.warning("%s is damaged; compiling anew", place)
    return None


def _keep(place: Path, code: bytes) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as file:
            file.write(code + hashlib.sha256(code).digest())
    except OSError as error:
        _logger.warning(
            "%s cannot be written (%s), so every process compiles for itself; set IPT_FAST_CACHE to a folder that can",
            place.parent,
            error.strerror,
        )


def _expressions(source: Path, arch: int) -> list[str]:
    return [kernel.expression for kernel in kernels_of(source, arch)]


def _has_cuda_core() -> bool:
    try:
        return importlib.util.find_spec("cuda.core") is not None
    except ModuleNotFoundError:  # no package cuda at all
        return False


def _compiler() -> str:
    from cuda.bindings import nvrtc

    return "NVRTC {1}.{2}".format(*nvrtc.nvrtcVersion())


def _found_headers() -> dict[str, str]:
    """Return header -> the folder that has it."""
    from cuda.pathfinder import find_nvidia_header_directory

    folders = {header: find_nvidia_header_directory(owner) for owner, header in _HEADERS.items()}
    return {header: folder for header, folder in folders.items() if folder and (Path(folder) / header).exists()}


def _advice(arch: int) -> str:
    extra = "cuda12" if arch < ARCHS[1] else "cuda12 or cuda13"
    return f"install the extra {extra} of ipt-fast"
