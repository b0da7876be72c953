"""The CUDA C++ attention on a V100: N = M = 256, d = 48, both embeddings, float16."""

from bench import csrc_facts
from bench.bounds.launch import Launch, Work, tiles
from bench.bounds.patch_attention import H, d
from bench.csrc_report import DRAM, FLOPS
from bench.ptx_facts import PtxFacts
from ipt_fast.cuda.kernels import Kernel, kernel_of
from ipt_fast.gpus import GPUS

N = 256
# What bench/results/offline.md has for sm_70, where NVRTC 12 is not installed: registers; and, counted along the
# compiled code, clocks a head and scheduler that issue and the slow pipe (exponentials, conversions) take.
REGISTERS = {"forward": 168, "backward": 250}
ISSUE = {"forward": 17_222, "backward": 31_470}
SLOW = {"forward": 6_272, "backward": 10_704}


def launches(B: int, device: str) -> list[Launch]:
    """Return forward and backward on a V100; elsewhere nothing takes these kernels unasked."""
    if GPUS[device].capability >= (8, 0):
        return []
    kernels = [kernel_of(direction, d, 70) for direction in ("forward", "backward")]
    return [
        Launch("patch_attention", f"csrc {k.direction}", f"N={N}", B, B * H * (tiles(N, k.rows)), k.threads // 32,
               csrc_work(B, k.direction, tiles(N, k.rows)), k)
        for k in kernels
    ]  # fmt: skip


def csrc_work(B: int, direction: str, blocks: int) -> Work:
    """Return the work of a direction; ``blocks``: of a head."""
    # HBM: each tensor once. L2 forward: q, q_embed, out once, k, k_embed, v once a block of a head; backward: q,
    # q_embed, grad, out, k, k_embed, v, dq, dk, dv.
    head, row = N * d * 2, 4 * N
    asked = 3 * head + blocks * 3 * head if direction == "forward" else 10 * head
    return Work(
        hbm=B * H * (DRAM[direction] + row) + 2 * H * head,
        l2=B * H * (asked + row),
        tensor=B * H * FLOPS[direction],
        exp=B * H * SLOW[direction] * 16,
        alu=B * H * ISSUE[direction] * 128,
    )


def facts(kernel: Kernel) -> PtxFacts:
    """Compile for sm_70 where NVRTC 12 is installed; otherwise return what is known."""
    if csrc_facts.nvrtc_folder() is not None:
        return csrc_facts.compile_nvrtc(kernel.source, 70, kernel.expression)
    return PtxFacts("sm_70", REGISTERS[kernel.direction], kernel.shared, 0, 0)
