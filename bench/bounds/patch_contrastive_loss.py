"""patch_contrastive_loss's kernels, N = 256 tokens of D = 576 features, bfloat16, negatives from the batch alone; those
"of others" are for the images of three more ranks.

The GEMMs of the backward, weights times unit tokens, are the vendor library's and not in here.
"""

import math

import torch

from bench.bounds.launch import Launch, Work, find_case, launch, tiles
from bench.count.rates import PEAKS
from bench.offline_cases.patch_contrastive_loss import offline_cases
from ipt_fast.gpus import GPUS
from ipt_fast.kernels.patch_contrastive_loss import _BLOCK_BYTES, _PAIRS, Plan, plan

N, D, SIZE = 256, 576, 2
OTHERS = 3  # ranks beside the own one
LABELS = (8, 64, 256)  # batches of the offline cases; the kernels know the batch by their tiles alone


def launches(B: int, device: str) -> list[Launch]:
    """Return the launches of forward and backward; none below capability 8.0, where GEMMs of the library serve."""
    if GPUS[device].capability < (8, 0):
        return []
    p = plan(B, N, D, torch.bfloat16, PEAKS[device].sms)
    cases, shape = offline_cases(), f"N={N} D={D}"
    gemms = f"bf16 B={min(LABELS, key=lambda label: abs(label - B))} N={N} D={D}"
    tokens = f"bf16 B=64 N={N} D={D}"
    programs = B * tiles(N, p.rows)
    found = [launch(find_case(cases, "unit tokens", tokens), shape, B, programs, unit_work(B, p))]
    of_others = find_case(cases, "unit tokens of others", tokens)
    found.append(launch(of_others, shape, B, OTHERS * programs, unit_work(OTHERS * B, p, sums=False)))
    found.append(launch(find_case(cases, "forward", gemms), shape, B, *forward_work(B, p)))
    found.append(launch(find_case(cases, "forward others", gemms), shape, B, *forward_others_work(B, p)))
    logs = find_case(cases, "forward logs", f"fp32 B=64 N={N} D={D}")
    found.append(launch(logs, shape, B, tiles(N * N, _PAIRS) * tiles(B, 64), logs_work(B)))
    for name, count, work, times in weights_work(B, p):
        if times == 0:
            continue
        found.append(launch(find_case(cases, name, gemms), shape, B, count, work, times=times))
    return [*found, launch(find_case(cases, "backward norm", tokens), shape, B, programs, norm_work(B))]


def unit_work(B: int, p: Plan, sums: bool = True) -> Work:
    """Features once in, unit tokens once out, a float32 sum of every ``rows`` tokens. Feature: conversion, square,
    scale, sum, half a conversion; the lanes up to a power of two go along.
    """
    moved = 2 * B * N * D * SIZE + 4 * B * D * tiles(N, p.rows) * sums
    return Work(moved, moved, exp=2 * B * N, alu=4.5 * B * N * p.block_of_features)


def forward_work(B: int, p: Plan) -> tuple[int, Work]:
    """Let a program take a pair of tiles of positions, with all images at both; both tiles of u from L2 for each pair
    of chunks of images. HBM: u once, S. Cosine: scale, test and choice for j = k, a sum by row and one by column.
    """
    count = tiles(N, p.block // p.images)
    pairs = count * (count + 1) // 2
    work = pairs * p.chunks(B) ** 2
    cosines = work * p.block**2
    return pairs, Work(
        hbm=p.tiles(B, N) * p.block * p.DP * SIZE + 4 * B * N * N,
        l2=work * 2 * p.block * p.DP * SIZE + 4 * B * N * N,
        tensor=2 * cosines * p.DP,
        exp=cosines,
        alu=5 * cosines,
    )


def forward_others_work(B: int, p: Plan) -> tuple[int, Work]:
    """Let a program take a tile of the own positions and one of the others', with all images at both. HBM: u of all
    once, S in and out. Cosine: scale, test and choice for padding, a sum by row.
    """
    count = tiles(N, p.block // p.images)
    work = count**2 * p.chunks(B) * p.chunks(OTHERS * B)
    cosines = work * p.block**2
    return count**2, Work(
        hbm=(p.tiles(B, N) + p.tiles(OTHERS * B, N)) * p.block * p.DP * SIZE + 8 * B * N * N,
        l2=work * 2 * p.block * p.DP * SIZE + 8 * B * N * N,
        tensor=2 * cosines * p.DP,
        exp=cosines,
        alu=4 * cosines,
    )


def logs_work(B: int) -> Work:
    """Read sums, write a sum of logarithms for every ``_PAIRS`` of them."""
    moved = 4 * B * N * N * (1 + 1 / _PAIRS)
    return Work(moved, moved, exp=B * N * N, alu=B * N * N)


def weights_work(B: int, p: Plan) -> list[tuple[str, int, Work, int]]:
    """Return kernel, programs, work of a block of weights and their number. L2: both tiles of u for each tile of W,
    and W, which about stays there for the GEMMs; HBM: u and S in all. Weight: scale, sum, product, test and choice for
    j = k, half a conversion.
    """
    every = p.tiles(B, N)
    parts = tiles(every, math.isqrt(_BLOCK_BYTES // (p.block**2 * SIZE)))
    side = tiles(every, parts)
    rounds = parts * (parts + 1) // 2

    def work(count: int, written: int) -> Work:
        weights = count * p.block**2
        return Work(
            hbm=(4 * B * N * N + every * p.block * p.DP * SIZE) / rounds,
            l2=count * 2 * p.block * p.DP * SIZE + written * p.block**2 * SIZE,
            tensor=2 * weights * p.DP,
            exp=weights,
            alu=5.5 * weights,
        )

    half = side * (side + 1) // 2  # where rows and columns are the same images
    return [
        ("backward weights symmetric", half, work(half, side**2), parts),
        ("backward weights", side**2, work(side**2, side**2), rounds - parts),
    ]


def norm_work(B: int) -> Work:
    """Features in, gradient of the unit tokens in float32 in, gradient of the features out. Feature: as
    ``unit_work``, and two products with sums, a difference.
    """
    moved = B * N * D * (2 * SIZE + 4)
    return Work(moved, moved, exp=2 * B * N, alu=9 * B * N * 1024)
