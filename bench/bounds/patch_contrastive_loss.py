"""patch_contrastive_loss's kernels, N = 256 tokens of D = 576 features, bfloat16, negatives from the batch alone.

The GEMM of the backward, [anchors, negatives] x [negatives, D], is the vendor library's and not in here.
"""

import torch

from bench.bounds.launch import Launch, Work, find_case, launch, tiles
from bench.count.rates import PEAKS
from bench.offline_cases.patch_contrastive_loss import offline_cases
from ipt_fast.gpus import GPUS
from ipt_fast.kernels.patch_contrastive_loss import _BLOCK_BYTES, _BLOCK_ROWS, Plan, plan

N, D, SIZE = 256, 576, 2


def launches(B: int, device: str) -> list[Launch]:
    """Return the launches of forward and backward; none below capability 8.0, where GEMMs of the library serve."""
    if GPUS[device].capability < (8, 0):
        return []
    p = plan(B, N, D, torch.bfloat16, PEAKS[device].sms)
    cases, shape = offline_cases(), f"N={N} D={D}"
    gemms = f"bf16 B={64 if p.block == 128 else 8} N={N} D={D}"  # the kernels know the batch by their tiles alone
    norms = f"bf16 B=64 N={N} D={D}"
    found = [launch(find_case(cases, "unit tokens", norms), shape, B, B * p.NP // p.rows, unit_work(B, p))]
    found.append(launch(find_case(cases, "forward", gemms), shape, B, *forward_work(B, p)))
    programs, work, rounds = weights_work(B, p)
    found.append(launch(find_case(cases, "backward weights", gemms), shape, B, programs, work, times=rounds))
    return [*found, launch(find_case(cases, "backward norm", norms), shape, B, B * p.NP // p.rows, norm_work(B))]


def unit_work(B: int, p: Plan) -> Work:
    """Features once in, unit tokens once out, a float32 sum of every ``rows`` tokens. Feature: conversion, square,
    scale, sum, half a conversion; the lanes up to a power of two go along.
    """
    moved = 2 * B * N * D * SIZE + 4 * B * D * p.NP / p.rows
    return Work(moved, moved, exp=2 * B * N, alu=4.5 * B * N * p.block_of_features)


def forward_work(B: int, p: Plan) -> tuple[int, Work]:
    """Let a program take a tile of j with each of B - 1 images k, both tiles of u from L2 for each. HBM: u once, S.
    Cosine: scale and sum.
    """
    programs, cosines = B * tiles(N, p.block) ** 2, B * (B - 1) * p.NP**2
    return programs, Work(
        hbm=B * p.NP * p.DP * SIZE + 4 * B * N * N,
        l2=programs * (B - 1) * 2 * p.block * p.DP * SIZE + 4 * B * N * N,
        tensor=2 * cosines * p.DP,
        exp=cosines,
        alu=2 * cosines,
    )


def weights_work(B: int, p: Plan) -> tuple[int, Work, int]:
    """One round of the backward and how many there are. L2: both tiles of u and of the coefficients for each tile of
    W, which stays there for the GEMM; HBM: coefficients and u once in all. Weight: scale, sum, two products, the
    test for j = k, half a conversion.
    """
    rows = max(1, min(B, _BLOCK_ROWS // p.NP))
    columns = max(1, min(B, _BLOCK_BYTES // (rows * p.NP * p.NP * SIZE)))
    rounds = tiles(B, rows) * tiles(B, columns)
    weights = rows * columns * p.NP**2
    programs = weights // p.block**2
    work = Work(
        hbm=(4 * B * N * N + B * p.NP * p.DP * SIZE) / rounds,
        l2=programs * 2 * p.block * p.DP * SIZE + weights * (2 * 4 + SIZE),
        tensor=2 * weights * p.DP,
        exp=weights,
        alu=5.5 * weights,
    )
    return programs, work, rounds


def norm_work(B: int) -> Work:
    """Features in, gradient of the unit tokens in float32 in, gradient of the features out. Feature: as
    ``unit_work``, and two products with sums, a difference.
    """
    moved = B * N * D * (2 * SIZE + 4)
    return Work(moved, moved, exp=2 * B * N, alu=9 * B * N * 1024)
