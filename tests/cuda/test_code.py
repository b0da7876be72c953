"""Where machine code comes from, and what is said where it cannot be had. Needs cuda-core and NVRTC, no GPU."""

import logging
import subprocess
import sys

import pytest

from ipt_fast.cuda import code
from ipt_fast.cuda.kernels import ARCHS, CSRC, KERNELS, Kernel

KERNEL = """
#include <cuda_fp16.h>
#include <mma.h>
extern "C" __global__ void small(__half* x) { *x = __hadd(*x, *x); }
"""

needs_compiler = pytest.mark.skipif(code.compiler_missing(80) is not None, reason=f"it {code.compiler_missing(80)}")
needs_sm_70 = pytest.mark.skipif(code.compiler_missing(70) is not None, reason=f"it {code.compiler_missing(70)}")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Return a small file; the cache is empty."""
    monkeypatch.setenv("IPT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(code, "PACKAGED", tmp_path / "cubins")
    path = tmp_path / "small.cu"
    path.write_text(KERNEL)
    return path


@pytest.fixture
def fresh():
    code.unavailable_reason.cache_clear()
    yield
    code.unavailable_reason.cache_clear()


def cached():
    return list(code.cache_folder().glob("*.cubin"))


def must_not_compile(*args):
    raise AssertionError("it compiled")


@needs_sm_70
@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_compiled_is_for_that_architecture(source, arch):
    content = code.cubin(source, arch)
    assert content[:4] == b"\x7fELF" and arch in content[48:50]  # flags; CUDA 12 and 13 differ


@needs_compiler
def test_it_compiles_once(source, monkeypatch):
    content = code.cubin(source, 80)
    assert len(cached()) == 1
    monkeypatch.setattr(code, "compile_cubin", must_not_compile)
    assert code.cubin(source, 80) == content
    with pytest.raises(AssertionError):
        code.cubin(source, 75)  # another architecture


@needs_compiler
def test_another_source_or_another_compiler_is_another_file(source, monkeypatch):
    from cuda.bindings import nvrtc

    code.cubin(source, 80)
    source.write_text(KERNEL.replace("small", "other"))
    assert b"other" in code.cubin(source, 80)
    version = nvrtc.nvrtcVersion()
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (version[0], version[1], version[2] + 1))
    code.cubin(source, 80)
    assert len(cached()) == 3


@needs_compiler
def test_a_header_of_the_kernels_counts_too(source, monkeypatch, tmp_path):
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "part.cuh").write_text("constexpr int kOne = 1;")
    monkeypatch.setattr(code, "CSRC", folder)
    code.cubin(source, 80)
    (folder / "part.cuh").write_text("constexpr int kOne = 2;")
    code.cubin(source, 80)
    assert len(cached()) == 2


@needs_compiler
def test_the_code_of_the_wheel_comes_first(source, monkeypatch):
    code.PACKAGED.mkdir()
    (code.PACKAGED / code.packaged_name(source, 80)).write_bytes(b"packaged")
    monkeypatch.setattr(code, "compile_cubin", must_not_compile)
    assert code.cubin(source, 80) == b"packaged"


@needs_compiler
@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: b"", lambda x: x[:900] + b"?" + x[901:]])
def test_a_damaged_file_is_said_and_made_anew(source, damage, caplog):
    content = code.cubin(source, 80)
    (place,) = cached()
    whole = place.read_bytes()
    place.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert code.cubin(source, 80) == content
    assert f"{place} is damaged; compiling anew" in caplog.text
    assert place.read_bytes() == whole


@needs_compiler
def test_a_folder_that_cannot_be_written_is_said_and_compiles(source, monkeypatch, caplog):
    (source.parent / "file").write_text("")
    monkeypatch.setenv("IPT_FAST_CACHE", str(source.parent / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert code.cubin(source, 80)[:4] == b"\x7fELF"
    assert "cannot be written (Not a directory)" in caplog.text and "set IPT_FAST_CACHE" in caplog.text


@needs_compiler
def test_a_full_disk_leaves_no_part_of_a_file(source, small_files, caplog):
    with small_files(100), caplog.at_level(logging.WARNING):
        assert code.cubin(source, 80)[:4] == b"\x7fELF"
    assert "cannot be written (File too large)" in caplog.text
    assert list(code.cache_folder().iterdir()) == []


@needs_compiler
def test_what_does_not_compile_says_why(source):
    source.write_text("__global__ void bad() { nonsense; }")
    words = r"small.cu does not compile for sm_80 with NVRTC [\d.]+ and the headers of /.*; for a set that fits install"
    with pytest.raises(RuntimeError, match=words + r'(.|\n)*"nonsense" is'):
        code.cubin(source, 80)
    assert cached() == []


@needs_compiler
@pytest.mark.parametrize("owner, header", [("nvcc", "crt/mma.h"), ("cudart", "cuda_fp16.h")])
def test_a_missing_header_is_named(source, fresh, monkeypatch, owner, header):
    import cuda.pathfinder as pathfinder

    real = pathfinder.find_nvidia_header_directory
    monkeypatch.setattr(pathfinder, "find_nvidia_header_directory", lambda name: None if name == owner else real(name))
    words = rf"needs CUDA's header {header} \({owner}\) to compile, and it is not installed; install the extra cuda12"
    with pytest.raises(RuntimeError, match=rf"small.cu: {words}"):
        code.cubin(source, 80)
    assert code.unavailable_reason(80).startswith("needs CUDA's header")


@needs_compiler
def test_a_missing_library_is_named(source, fresh, monkeypatch):
    from cuda.bindings import nvrtc
    from cuda.pathfinder import DynamicLibNotFoundError

    def missing():
        raise DynamicLibNotFoundError("libnvrtc.so.12")

    monkeypatch.setattr(nvrtc, "nvrtcGetSupportedArchs", missing)
    with pytest.raises(
        RuntimeError, match="needs NVRTC to compile for sm_80, and it is not installed; install the extra"
    ):
        code.cubin(source, 80)
    assert code.unavailable_reason(80).startswith("needs NVRTC")


@needs_compiler
def test_a_compiler_without_the_architecture_is_said(source):
    with pytest.raises(
        RuntimeError, match=r"needs an NVRTC that compiles for sm_40 \(NVRTC [\d.]+ does not\); .* cuda12 "
    ):
        code.cubin(source, 40)


def test_without_cuda_core_it_says_what_to_install(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    reason = code.unavailable_reason(70)
    assert reason == "needs the package cuda-core, which is not installed; install the extra cuda12 of ipt-fast"


@needs_sm_70
def test_where_all_is_installed_nothing_is_missing(fresh):
    assert [code.unavailable_reason(arch) for arch in ARCHS] == [None] * 4


def test_code_of_the_wheel_needs_no_compiler(fresh, monkeypatch, tmp_path):
    pytest.importorskip("cuda.core")
    monkeypatch.setattr(code, "PACKAGED", tmp_path)
    monkeypatch.setattr(code, "compiler_missing", lambda arch: "needs a compiler")
    assert code.unavailable_reason(70) == "needs a compiler"
    code.unavailable_reason.cache_clear()
    for source in code.sources():
        (tmp_path / code.packaged_name(source, 70)).write_bytes(b"")
    assert code.unavailable_reason(70) is None


def test_a_kernel_that_is_not_in_the_code_is_said():
    with pytest.raises(RuntimeError, match=r"patch_attention_forward\.cu has no kernel for d = 48"):
        code.symbol(b"_ZN8ipt_fast23patch_attention_forwardILi32EEv", KERNELS[1])


def test_a_kernel_is_found_by_its_head_size():
    names = [f"_ZN8ipt_fast23patch_attention_forwardILi{d}ELi32EEvf" for d in (32, 48)]
    assert code.symbol("\0".join(names).encode() + b"\0", Kernel("forward", 48, 0, 0, 0, 0)) == names[1]


def test_the_cache_is_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("IPT_FAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert code.cache_folder() == tmp_path / "ipt-fast"


def test_what_the_build_needs_is_python_alone():
    program = "import sys; from ipt_fast.cuda import code; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=CSRC.parent.parent, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_library_is_as_the_launch_takes_it():
    core = pytest.importorskip("cuda.core")
    from cuda.bindings import driver

    config = core.LaunchConfig(grid=70_000, block=128, shmem_size=95_504)
    assert (config.grid, config.block, config.shmem_size) == ((70_000, 1, 1), (128, 1, 1), 95_504)
    assert (
        callable(core.Device.set_current)
        and callable(core.launch)
        and callable(core.Stream.from_handle)
        and callable(core.ObjectCode.from_cubin)
    )
    assert driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert callable(driver.cuKernelSetAttribute) and driver.CUresult.CUDA_SUCCESS == 0
