"""The CUDA C++ attention: its numbers, by running the kernels' own source on the CPU, and what it compiles to.

It has not run on a GPU yet: the emulation proves indices, barriers and arithmetic, not the hardware.
"""

import math
import re

import pytest
import torch

from bench import csrc_cases, csrc_emulation, csrc_facts


@pytest.fixture
def emulate(emulation):
    emulation.configure()
    return emulation


def drawn(*shape):
    return torch.randn(*shape).half()


def case(*sizes, **kwargs):
    """q, k, v, q_embed, k_embed and the gradient of the output."""
    return csrc_cases.draw(csrc_cases.Case(*sizes, **kwargs))


def eager(tensors, H, dtype, scale):
    """out, dq, dk and dv of the eager reference in ``dtype``."""
    return csrc_cases.attend(tensors, H, scale, "eager", dtype)[:4]


def emulated(emulate, tensors, H, scale):
    q, k, v, q_embed, k_embed, grad = tensors
    out, lse = emulate.forward(q, k, v, H, q_embed, k_embed, scale=scale)
    return out, *emulate.backward(grad, q, k, v, H, q_embed, k_embed, out, lse, scale=scale)


def assert_within_budget(found, tensors, H, scale):
    for name, error, allowed in csrc_cases.errors(found, tensors, H, scale):
        assert error <= allowed, (name, error, allowed)  # nan fails


@pytest.mark.parametrize("B, H, N, M, d", csrc_cases.SHAPES)
@pytest.mark.parametrize("embeds", [True, False])
def test_error_is_within_twice_the_eager_one(emulate, B, H, N, M, d, embeds):
    tensors, scale = case(B, H, N, M, d, embeds=embeds), d**-0.5
    assert_within_budget(emulated(emulate, tensors, H, scale), tensors, H, scale)


@pytest.mark.parametrize("scale", csrc_cases.SCALES)
def test_any_scale(emulate, scale):
    tensors = case(1, 1, 100, 120, 48)
    assert_within_budget(emulated(emulate, tensors, 1, scale), tensors, 1, scale)


@pytest.mark.parametrize("N, M", [(50, 60), (70, 300)])
def test_half_as_many_warps_for_gpus_with_less_shared_memory(emulate, N, M):
    q, k, v, q_embed, k_embed, grad = tensors = case(1, 2, N, M, 48)
    out, lse = emulate.forward(q, k, v, 2, q_embed, k_embed, scale=0.2)
    grads = emulate.backward(grad, q, k, v, 2, q_embed, k_embed, out, lse, scale=0.2, warps=4)
    assert_within_budget((out, *grads), tensors, 2, 0.2)


@pytest.mark.parametrize("mean, size", csrc_cases.SPREADS)
def test_biased_and_large_inputs(emulate, mean, size):
    tensors = case(1, 1, 96, 160, 48, mean=mean, size=size)
    assert_within_budget(emulated(emulate, tensors, 1, 48**-0.5), tensors, 1, 48**-0.5)


def test_scores_far_below_zero(emulate):
    # exp(-lse) overflows: keys past the end, whose score would be 0, must not come in.
    q, k, v, *_, grad = case(1, 1, 40, 50, 48, embeds=False)
    tensors = (q + 5, k - 5, v, None, None, grad)
    assert_within_budget(emulated(emulate, tensors, 1, 48**-0.5), tensors, 1, 48**-0.5)


def test_one_key_far_above_the_others_comes_last(emulate):
    q, k, v, *_, grad = case(1, 1, 40, 256, 48, embeds=False)
    k[:, 255] = 8 * q[:, 3]  # the running maximum rises at the very end
    tensors = (q, k, v, None, None, grad)
    assert_within_budget(emulated(emulate, tensors, 1, 1.0), tensors, 1, 1.0)


def test_lse_is_the_logarithm_of_the_sum_of_exponentials(emulate):
    q, k, v, q_embed, k_embed, _ = case(2, 2, 50, 70, 48)
    _, lse = emulate.forward(q, k, v, 2, q_embed, k_embed, scale=0.2)
    a, b = ((x.double() + e.double()).unflatten(2, (2, 48)).transpose(1, 2) for x, e in ((q, q_embed), (k, k_embed)))
    torch.testing.assert_close(lse.double(), (a @ b.transpose(2, 3) * 0.2).logsumexp(3), atol=1e-2, rtol=1e-3)


def test_views_of_a_packed_projection_are_read_and_written_by_stride(emulate):
    H, d, N = 2, 48, 70
    D = H * d
    # What lies between the views, and past them, is nan and must stay.
    packed, gradients = (torch.full((3, N + 1, 4 * D), math.nan, dtype=torch.float16) for _ in range(2))
    packed[:2, :N, : 3 * D] = drawn(2, N, 3 * D)
    views, into = (list(x[:2, :N, : 3 * D].chunk(3, 2)) for x in (packed, gradients))
    grad, (q_embed, k_embed) = drawn(2, N, D), drawn(2, N, 2 * D)[0].chunk(2, 1)
    results = []
    for q, k, v, target in ((*views, into), (*(x.contiguous() for x in views), None)):
        out, lse = emulate.forward(q, k, v, H, q_embed, k_embed, scale=0.2)
        results.append([out, *emulate.backward(grad, q, k, v, H, q_embed, k_embed, out, lse, scale=0.2, into=target)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not any(torch.isnan(x).any() for x in results[0])
    assert gradients[2].isnan().all() and gradients[:, N].isnan().all() and gradients[..., 3 * D :].isnan().all()


def test_a_nan_query_gives_a_nan_row_and_what_eager_gives(emulate):
    tensors = case(1, 1, 40, 50, 48)
    tensors[0][0, 7, 3] = math.nan
    found, reference = emulated(emulate, tensors, 1, 0.2), eager(tensors, 1, torch.float32, 0.2)
    for x, y in zip(found, reference, strict=True):
        assert torch.equal(x.isnan(), y.isnan())
    assert found[0].isnan().any(2).sum() == 1


def test_nan_in_a_key_or_a_value_passes(emulate):
    for index, column in ((1, 3), (2, 3)):
        tensors = case(1, 1, 20, 50, 48)
        tensors[index][0, 49, column] = math.nan
        found, reference = emulated(emulate, tensors, 1, 0.2), eager(tensors, 1, torch.float32, 0.2)
        assert torch.equal(found[0].isnan(), reference[0].isnan())


@pytest.mark.parametrize("layout", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", [1, 2])
def test_bits_depend_neither_on_the_layout_of_accumulators_nor_on_the_order_of_warps(emulate, layout, order):
    # Sums over a row's four lanes change their order with the layout, so those may differ by rounding.
    tensors = case(1, 1, 70, 90, 48)
    plain = emulated(emulate, tensors, 1, 0.2)
    emulate.configure(order=order)
    assert all(torch.equal(a, b) for a, b in zip(plain, emulated(emulate, tensors, 1, 0.2), strict=True))
    emulate.configure(layout=layout, order=order)
    found = emulated(emulate, tensors, 1, 0.2)
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
    assert_within_budget(found, tensors, 1, 0.2)


def test_a_layout_that_it_does_not_know_stops_the_kernel(emulate):
    q, k, v, *_ = case(1, 1, 16, 16, 48)
    emulate.configure(layout=-1)
    with pytest.raises(RuntimeError, match="trap"):
        emulate.forward(q, k, v, 1, scale=1.0)


def barriers(file):
    lines = (csrc_facts.CSRC / file).read_text().splitlines()
    offset = csrc_emulation.HEADER if file.endswith(".cuh") else 0
    return [n + offset for n, line in enumerate(lines, 1) if re.search(r"__sync(threads|warp)\(\)", line)]


FORWARD = [*barriers("patch_attention_forward.cu"), *barriers("patch_attention.cuh")]
BACKWARD = [*barriers("patch_attention_backward.cu"), *barriers("patch_attention.cuh")]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("direction, line", [*(("forward", n) for n in FORWARD), *(("backward", n) for n in BACKWARD)])
def test_every_barrier_is_missed_when_it_is_left_out(emulate, direction, line, order):
    q, k, v, q_embed, k_embed, grad = case(1, 1, 160, 160, 48)
    call, arguments = emulate.forward, (q, k, v, 1, q_embed, k_embed)
    if direction == "backward":
        call, arguments = emulate.backward, (grad, *arguments, *emulate.forward(*arguments, scale=0.2))
    emulate.configure(order=order, skip_barrier=line)
    with pytest.raises(RuntimeError, match="race at line"):
        call(*arguments, scale=0.2)


def test_barriers_were_found():
    assert len(FORWARD) >= 8 and len(BACKWARD) >= 8


@pytest.mark.parametrize(
    "text, wavefronts",
    [
        ("load_matrix_sync(part, k_step", (4.0, 2.0)),  # 16 bytes a lane: 4 is the least where quarters are served
        ("load_matrix_sync(part, v_step", (2.0, 1.0)),  # 8 bytes a lane
        ("write_shared(reinterpret_cast<unsigned*>(to), pack_probabilities", (2.0, 2.0)),  # 4 without swapped keys
    ],
)
def test_shared_memory_is_read_and_written_with_as_few_conflicts_as_a_pitch_allows(emulate, text, wavefronts):
    q, k, v, *_ = case(1, 1, 32, 64, 48, embeds=False)
    emulate.configure(counts=True)
    emulate.forward(q, k, v, 1, scale=1.0)
    lines = (csrc_facts.CSRC / "patch_attention_forward.cu").read_text().splitlines()
    (line,) = (n for n, words in enumerate(lines, 1) if text in words)
    ((*_, instructions, split, merged),) = (row for row in emulate.wavefronts() if row[0] == line)
    assert instructions > 0 and (split / instructions, merged / instructions) == wavefronts


@pytest.mark.parametrize("kernel", csrc_facts.KERNELS, ids=lambda k: f"{k.direction}-{k.d}-{k.threads}")
def test_launch_geometry_is_that_of_the_source(emulate, kernel):
    of_the_source = emulate.geometry(kernel.direction, kernel.d, kernel.threads // 32)
    assert of_the_source == (kernel.threads, kernel.shared, kernel.rows)


@pytest.mark.parametrize(
    "kernel", [k for k in csrc_facts.KERNELS if 70 in k.archs], ids=lambda k: f"{k.direction}-{k.d}"
)
def test_it_compiles_for_sm_70_and_as_many_blocks_fit_as_are_promised(kernel):
    if "NVRTC 12" not in csrc_facts.compilers():
        pytest.skip("NVRTC 12 is not installed")
    facts = csrc_facts.compile_nvrtc(kernel.source, 70, kernel.expression)
    assert facts.arch == "sm_70" and facts.mma > 0 and facts.spills == 0
    assert kernel.blocks * kernel.threads * ((facts.registers + 7) // 8 * 8) <= 65_536
    assert kernel.blocks * kernel.shared <= csrc_facts.SHARED


@pytest.mark.parametrize("source", csrc_facts.sources(), ids=lambda p: p.stem)
@pytest.mark.parametrize("arch", csrc_facts.NVCC_ARCHS)
def test_it_compiles_for_later_gpus_without_spills(source, arch):
    if "nvcc" not in csrc_facts.compilers():
        pytest.skip("nvcc is not installed")
    facts = csrc_facts.compile_nvcc(source, arch)
    assert facts.arch == f"sm_{arch}" and facts.mma > 0 and facts.spills == 0
    assert facts.shared <= (64 << 10 if arch == 75 else csrc_facts.SHARED)


def test_a_file_that_does_not_compile_says_why(tmp_path):
    if "nvcc" not in csrc_facts.compilers():
        pytest.skip("nvcc is not installed")
    path = tmp_path / "bad.cu"
    path.write_text("__global__ void kernel() { nonsense; }")
    with pytest.raises(RuntimeError, match="nonsense"):
        csrc_facts.compile_nvcc(path, 80)
