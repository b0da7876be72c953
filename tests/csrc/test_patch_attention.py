"""The CUDA C++ attention: its numbers, by running the kernel's own source on the CPU, and what it compiles to.

It has not run on a GPU yet: the emulation proves indices, barriers and arithmetic, not the hardware.
"""

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bench import csrc_facts
from ipt_fast.ops import patch_attention

D_HEAD = 48


@pytest.fixture(scope="session")
def emulate(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("csrc") / "emulation.so"
    source = Path(__file__).with_name("emulate_patch_attention.cpp")
    flags = ["-std=c++20", "-O2", "-fno-strict-aliasing", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    done = subprocess.run(["g++", *flags, str(source), "-o", str(library)], capture_output=True, text=True)
    if done.returncode and "_Float16" in done.stderr:
        pytest.skip("needs a g++ that has _Float16 (12 or newer)")
    assert done.returncode == 0, done.stderr[:2000]
    function = ctypes.CDLL(str(library)).emulate

    def call(q, k, v, H, q_embed=None, k_embed=None, scale=D_HEAD**-0.5):
        (B, N, D), M = q.shape, k.shape[1]
        out = torch.full((B, N, D), math.nan, dtype=torch.float16)
        lse = torch.full((B, H, N), math.nan)
        pointers = [None if x is None else x.data_ptr() for x in (q, k, v, q_embed, k_embed, out, lse)]
        strides = [stride for x in (q, k, v) for stride in x.stride()[:2]]
        strides += [0 if x is None else x.stride(0) for x in (q_embed, k_embed)]
        function(
            *(ctypes.c_void_p(p) for p in pointers),
            *(ctypes.c_int(size) for size in (B, H, N, M)),
            *(ctypes.c_long(stride) for stride in strides),
            ctypes.c_float(scale),
        )
        return out, lse

    return call


def drawn(*shape, size=1.0):
    return (torch.randn(*shape) * size).half()


def relative(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def eager(q, k, v, H, q_embed, k_embed, dtype, scale):
    q, k, v, q_embed, k_embed = (None if x is None else x.to(dtype) for x in (q, k, v, q_embed, k_embed))
    return patch_attention(q, k, v, num_heads=H, q_embed=q_embed, k_embed=k_embed, scale=scale, impl="eager")


@pytest.mark.parametrize("B, H, N, M", [(1, 1, 64, 64), (2, 2, 64, 192), (1, 2, 256, 256)])
@pytest.mark.parametrize("embeds", [True, False])
@pytest.mark.parametrize("scale", [D_HEAD**-0.5, 1.0])
def test_error_is_within_twice_the_eager_one(emulate, B, H, N, M, embeds, scale):
    D = H * D_HEAD
    q, k, v = drawn(B, N, D), drawn(B, M, D), drawn(B, M, D)
    q_embed, k_embed = (drawn(N, D), drawn(M, D)) if embeds else (None, None)
    exact = eager(q, k, v, H, q_embed, k_embed, torch.float64, scale)
    allowed = 2 * relative(eager(q, k, v, H, q_embed, k_embed, torch.float16, scale), exact) + 1e-6
    out, lse = emulate(q, k, v, H, q_embed, k_embed, scale)
    assert relative(out, exact) <= allowed
    added_q, added_k = (x.double() if e is None else x.double() + e.double() for x, e in ((q, q_embed), (k, k_embed)))
    heads = [x.unflatten(2, (H, D_HEAD)).transpose(1, 2) for x in (added_q, added_k)]
    scores = heads[0] @ heads[1].transpose(2, 3) * scale
    assert (lse - scores.logsumexp(3)).abs().max() < 2e-2 * max(1.0, scale * 10)


def test_views_of_a_packed_projection_are_read_by_stride(emulate):
    D, N = 2 * D_HEAD, 128
    packed = drawn(2, N, 3 * D)
    parts = packed.split(D, 2)
    out, lse = emulate(*parts, 2)
    dense, dense_lse = emulate(*(x.contiguous() for x in parts), 2)
    assert torch.equal(out, dense) and torch.equal(lse, dense_lse)


def test_scores_far_from_zero_stay_finite(emulate):
    q, k, v = drawn(1, 64, D_HEAD, size=20), drawn(1, 128, D_HEAD, size=20), drawn(1, 128, D_HEAD)
    out, lse = emulate(q, k, v, 1, scale=1.0)
    exact = eager(q, k, v, 1, None, None, torch.float64, 1.0)
    assert torch.isfinite(lse).all()
    assert relative(out, exact) < 1e-2


@pytest.mark.parametrize("compiler", ["NVRTC 12", "nvcc"])
def test_it_compiles_to_tensor_cores_without_spills(compiler):
    if compiler not in csrc_facts.compilers():
        pytest.skip(f"{compiler} is not installed")
    archs, compile_with = csrc_facts.compilers()[compiler]
    for arch in archs:
        facts = compile_with(csrc_facts.CSRC / "patch_attention.cu", arch)
        assert facts.arch == f"sm_{arch}"
        assert facts.mma > 0 and facts.spills == 0 and facts.shared <= csrc_facts.SHARED
        # Three blocks of 128 threads on the 65,536 registers of a multiprocessor.
        assert facts.registers <= 168


def test_a_file_that_does_not_compile_says_why(tmp_path):
    if "nvcc" not in csrc_facts.compilers():
        pytest.skip("nvcc is not installed")
    path = tmp_path / "bad.cu"
    path.write_text("__global__ void kernel() { nonsense; }")
    with pytest.raises(RuntimeError, match="nonsense"):
        csrc_facts.compile_nvcc(path, 80)
