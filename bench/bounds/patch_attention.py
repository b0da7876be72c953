"""patch_attention's Triton kernels: the network (N = M = 256) and the deblurring network (1024), d = 48, embeddings."""

import torch

from bench.bounds.launch import Launch, Work, find_case, launch, tiles
from bench.count.rates import PEAKS
from bench.offline_cases.patch_attention import offline_cases
from ipt_fast.gpus import GPUS
from ipt_fast.kernels._patch_attention_tiles import split_head
from ipt_fast.kernels.patch_attention import Plan, plan_backward, plan_forward

H, d, SIZE = 12, 48, 2  # SIZE: bytes of a bfloat16


def launches(B: int, device: str) -> list[Launch]:
    """Return the launches of forward and backward; none below capability 8.0, where ``csrc.py`` has others."""
    if GPUS[device].capability < (8, 0):
        return []
    return [launch for N in (256, 1024) for launch in _launches(B, N, device)]


def _launches(B: int, N: int, device: str) -> list[Launch]:
    cases, label, shape = offline_cases(), f"bf16 N={N} d={d}", f"N={N}"
    forward = plan_forward(N, N, d, torch.bfloat16)
    backward = plan_backward(N, N, d, torch.bfloat16, GPUS[device].capability)
    programs, work = forward_work(B, N, forward, PEAKS[device].sms)
    found = [launch(find_case(cases, "forward", label), shape, B, programs, work, direction="forward")]
    if backward.one:
        return [*found, launch(find_case(cases, "backward q k v", label), shape, B, B * H, all_work(B, N))]
    programs, work = queries_work(B, N, backward)
    found.append(launch(find_case(cases, "backward q", label), shape, B, programs, work))
    programs, work = keys_work(B, N, backward)
    return [*found, launch(find_case(cases, "backward k v", label), shape, B, programs, work)]


# ``head``: bytes of a [N, d] of one head; ``row``: of one float32 a row of it.


def forward_work(B: int, N: int, plan: Plan, sms: int) -> tuple[int, Work]:
    """HBM: q, k, v, out, lse, two embeddings. L2: k, k_embed and v once for the queries that a program takes at a
    time. Score: scale, highest, sum, half a conversion, and its part of the rescaled outputs.
    """
    rows = plan.block_n
    if plan.one:  # as its launcher
        rows *= tiles(tiles(N, plan.block_n), tiles(2 * sms, B * H))
    programs, scores, width = B * H * tiles(N, rows), B * H * N * N, sum(split_head(d))
    head, row = N * d * SIZE, 4 * N
    return programs, Work(
        hbm=B * H * (4 * head + row) + 2 * H * head,
        l2=B * H * (3 * head + row) + programs * 3 * head * (1 if plan.one else tiles(rows, plan.block_n)),
        tensor=2 * 2 * scores * width,
        exp=scores * (1 + 1 / plan.block_m),
        alu=scores * (3.5 + width / plan.block_m),
    )


def all_work(B: int, N: int) -> Work:
    """One program a head. HBM: q, k, v, out, grad, lse; dq, dk, dv, delta. L2: both embeddings too, grad and delta
    twice. Five GEMMs. Score: exponent, difference, product, two halves of a conversion.
    """
    head, row, scores = N * d * SIZE, 4 * N, B * H * N * N
    return Work(
        hbm=B * H * (8 * head + 2 * row) + 2 * H * head,
        l2=B * H * (11 * head + 3 * row),
        tensor=5 * 2 * scores * d,
        exp=scores,
        alu=4 * scores,
    )


def queries_work(B: int, N: int, plan: Plan) -> tuple[int, Work]:
    """HBM: q, k, v, out, grad, lse; dq, delta. L2: k, k_embed, v again for each block of queries. Three GEMMs."""
    head, row, scores, blocks = N * d * SIZE, 4 * N, B * H * N * N, tiles(N, plan.block_n)
    return B * H * blocks, Work(
        hbm=B * H * (6 * head + 2 * row) + 2 * H * head,
        l2=B * H * (5 * head + 2 * row + blocks * 3 * head),
        tensor=3 * 2 * scores * d,
        exp=scores,
        alu=3.5 * scores,
    )


def keys_work(B: int, N: int, plan: Plan) -> tuple[int, Work]:
    """HBM: q, k, v, grad, lse, delta; dk, dv. L2: q, q_embed, grad, lse, delta again for each block of keys. Four
    GEMMs.
    """
    head, row, scores, blocks = N * d * SIZE, 4 * N, B * H * N * N, tiles(N, plan.block_m)
    return B * H * blocks, Work(
        hbm=B * H * (6 * head + 2 * row) + 2 * H * head,
        l2=B * H * (5 * head + blocks * (3 * head + 2 * row)),
        tensor=4 * 2 * scores * d,
        exp=scores,
        alu=4 * scores,
    )
