"""The backend "cuda" of patch_attention up to the launch; the launched kernel is the emulated one of tests/csrc."""

import ctypes

import pytest
import torch

from ipt_fast.cuda.kernels import HEAD_DIMS, arch_of, kernel_of
from ipt_fast.ops import patch_attention
from ipt_fast.ops._registry import assume
from ipt_fast.ops.patch_attention import backend_status
from tests.cuda.conftest import STREAM, symbol_of


def drawn(*shape):
    return torch.randn(*shape).half()


def plain(arguments):
    return [a if isinstance(a, int) else a.value for a in arguments]


def inputs(B, H, N, M, d):
    return drawn(B, N, H * d), drawn(B, M, H * d), drawn(B, M, H * d), drawn(N, H * d), drawn(M, H * d)


@pytest.mark.parametrize("arch", [70, 75, 80, 90])
@pytest.mark.parametrize("d", HEAD_DIMS)
def test_a_launch_is_that_of_the_table(machine, arch, d):
    machine.arch = arch
    q, k, v, *_ = inputs(2, 3, 130, 20, d)
    q.requires_grad_()
    patch_attention(q, k, v, num_heads=3, impl="cuda").sum().backward()
    for launch, direction, blocks in zip(machine.launches, ("forward", "backward"), (2 * 3 * 2, 2 * 3), strict=True):
        kernel = kernel_of(direction, d, arch)
        assert vars(launch.config) == {"grid": blocks, "block": kernel.threads, "shmem_size": kernel.shared}
        assert launch.symbol == symbol_of(kernel) and launch.stream == STREAM
    # More than 48 KB of shared memory want leave, once a kernel; the backward of sm_75 with d < 64 asks for less.
    expected = [("shared", backward.shared)] if (backward := kernel_of("backward", d, arch)).shared > 48 << 10 else []
    assert [a[:2] for a in machine.attributes] == expected
    assert all(text.startswith(f"code of sm_{arch}:".encode()) for text in machine.loaded)


def test_arguments_are_in_the_order_and_the_types_of_the_source(machine):
    B, H, N, M, d = 2, 3, 40, 300, 48
    q, k, v, q_embed, _ = inputs(B, H, N, M, d)
    D = H * d
    q.requires_grad_()
    patch_attention(q, k, v, num_heads=H, q_embed=q_embed, scale=0.25, impl="cuda").sum().backward()
    forward, backward = machine.launches
    *pointers, h, n, m = plain(forward.arguments)[:10]
    assert pointers[:5] == [q.data_ptr(), k.data_ptr(), v.data_ptr(), q_embed.data_ptr(), 0]
    assert (h, n, m) == (H, N, M)
    assert plain(forward.arguments)[10:] == [N * D, D, M * D, D, M * D, D, D, 0, 0.25]
    kinds = [*[int] * 7, *[ctypes.c_int32] * 3, *[ctypes.c_int64] * 8, ctypes.c_float]
    assert [type(a) for a in forward.arguments] == kinds
    assert [type(a) for a in backward.arguments] == [*[int] * 12, *[ctypes.c_int32] * 3, *[ctypes.c_int64] * 16,
                                                     ctypes.c_float]  # fmt: skip
    strides = [N * D, D, N * D, D, M * D, D, M * D, D, D, 0, N * D, D, M * 2 * D, 2 * D, M * 2 * D, 2 * D]
    assert plain(backward.arguments)[15:] == [*strides, 0.25]
    assert backward.arguments[11] != 0  # sums of dq: more keys than a block holds


def test_keys_of_one_block_need_no_workspace(machine):
    q, k, v, *_ = inputs(1, 2, 256, 256, 48)
    q.requires_grad_()
    patch_attention(q, k, v, num_heads=2, impl="cuda").sum().backward()
    assert machine.launches[1].arguments[11] == 0


def test_more_heads_than_a_grid_has_in_y(machine):
    q, k, v, *_ = inputs(2 ** 13 + 8, 8, 1, 1, 32)  # fmt: skip
    patch_attention(q, k, v, num_heads=8, impl="cuda")
    assert machine.launches[0].config.grid == 8 * (2**13 + 8) > 65_535


def test_views_of_a_packed_projection_are_not_copied(machine):
    packed = drawn(2, 20, 3 * 96)
    q, k, v = packed.chunk(3, -1)
    patch_attention(q, k, v, num_heads=2, impl="cuda")
    arguments = plain(machine.launches[0].arguments)
    assert arguments[:3] == [x.data_ptr() for x in (q, k, v)]
    assert arguments[10:16] == [20 * 288, 288] * 3


@pytest.mark.parametrize("offset, row", [(1, 96), (0, 97)])
def test_what_16_bytes_do_not_fit_is_copied(machine, offset, row):
    odd = drawn(2 * 20 * row + offset)[offset:].view(2, 20, row)[..., :96]
    patch_attention(odd, odd, odd, num_heads=2, impl="cuda")
    arguments = plain(machine.launches[0].arguments)
    assert odd.data_ptr() not in arguments[:3] and arguments[10:12] == [20 * 96, 96]


@pytest.mark.parametrize("arch, N, M", [(70, 40, 50), (70, 33, 300), (75, 33, 150), (90, 50, 50)])
def test_numbers_from_the_public_function_to_the_kernel_and_back(machine, emulation, arch, N, M):
    machine.arch = arch
    B, H, d = 2, 2, 48
    tensors = inputs(B, H, N, M, d)
    grad = drawn(B, N, H * d)

    def run(launch):
        backward = "backward" in launch.symbol
        variant = launch.config.block // 32 if backward else 32
        emulation.launch("backward" if backward else "forward", d, B, plain(launch.arguments), variant)

    def all_of(dtype, impl):
        own = [x.to(dtype).clone().requires_grad_() for x in tensors]
        out = patch_attention(*own[:3], num_heads=H, q_embed=own[3], k_embed=own[4], impl=impl)
        return out.detach(), *torch.autograd.grad(out, own, grad.to(dtype))

    emulation.configure()
    machine.kernel = run
    found = all_of(torch.float16, "cuda")
    exact, half = all_of(torch.float64, "eager"), all_of(torch.float16, "eager")
    for name, x, y, z in zip(("out", "dq", "dk", "dv", "dq_embed", "dk_embed"), found, exact, half, strict=True):
        error, allowed = ((t.double() - y).norm().item() for t in (x, z))
        assert error <= 2 * allowed, (name, error, allowed)


def test_the_device_of_the_tensors_is_made_current(machine):
    q, k, v, *_ = inputs(1, 1, 4, 4, 32)
    entered = []
    machine.kernel = lambda launch: entered.extend(machine.inside)
    patch_attention(q, k, v, num_heads=1, impl="cuda")
    assert entered == [q.device]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_other_dtypes_are_refused(machine, dtype):
    q = torch.zeros(1, 4, 64, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(RuntimeError, match=rf'impl="cuda" has float16 kernels alone \(got {name}\); use impl='):
        patch_attention(q, q, q, num_heads=1, impl="cuda")


def test_other_head_sizes_are_refused(machine):
    q = drawn(1, 4, 80)
    with pytest.raises(RuntimeError, match=r"a head size D / num_heads of 32, 48, 64 \(got 40\)"):
        patch_attention(q, q, q, num_heads=2, impl="cuda")


@pytest.mark.parametrize("arch", [60, 61])
def test_older_gpus_are_refused(machine, arch):
    machine.arch = arch
    q = drawn(1, 4, 64)
    with pytest.raises(RuntimeError, match=rf"capability 7.0 or newer \(found 6.{arch % 10}\)"):
        patch_attention(q, q, q, num_heads=1, impl="cuda")


@pytest.mark.parametrize(
    "capability, first", [((7, 0), "cuda"), ((7, 5), "cuda"), ((8, 0), "triton"), ((9, 0), "triton")]
)
def test_it_is_automatic_on_gpus_without_triton_s_tensor_cores(capability, first):
    with assume(capability):
        status = backend_status("cuda")
    assert next(name for name, reason in status.items() if reason is None) == first
    assert status["cuda"] is None  # by impl="cuda" on all of them


@pytest.mark.parametrize(
    "capability, arch", [((7, 0), 70), ((7, 2), 70), ((7, 5), 75), ((8, 9), 80), ((9, 0), 90), ((12, 0), 120)]
)
def test_a_gpu_runs_the_code_of_the_newest_of_its_generation(capability, arch):
    assert arch_of(capability) == arch
    assert kernel_of("backward", 48, arch).threads == (128 if arch == 75 else 256)
