"""pixelshuffle_tail's kernel on 48 x 48 cells of 64 features, bfloat16: the tails of x2, x3 and x4."""

import torch

from bench.bounds.launch import Launch, Work, find_case, launch, tiles
from bench.offline_cases.pixelshuffle_tail import SHAPES, offline_cases
from ipt_fast.gpus import GPUS
from ipt_fast.kernels.pixelshuffle_tail import plan

SIDE, SIZE = 48, 2


def launches(B: int, device: str) -> list[Launch]:
    """Return a launch a scale; none below capability 8.0."""
    if GPUS[device].capability < (8, 0):
        return []
    cases = offline_cases()
    return [
        launch(find_case(cases, "forward", f"bf16 {name}"), name, B, *tail_work(B, *SHAPES[name]), direction="forward")
        for name in ("x2", "x3", "x4")
    ]


def tail_work(B: int, R: int, frame: int, reach: int, C: int, O: int) -> tuple[int, Work]:
    """HBM: cells once in, pixels once out, every class's kernel once. L2: each tap reads the features of a block of
    cells, and its weights.
    """
    P, sizes = O * R * R, plan(C, O * R * R, torch.bfloat16)
    inside, edge = B * (SIDE - 2 * frame) ** 2, B * (SIDE - 2 * frame)
    # Programs of the border: the longest class's number for each; those of the corners end at once.
    classes, block = (2 * frame + 1) ** 2, sizes["BLOCK_M"]
    working = tiles(inside, block) + 4 * frame * tiles(edge, block) + 4 * frame**2 * tiles(B, block)
    programs = tiles(inside, block) + (classes - 1) * tiles(edge, block)
    taps, pixels = (2 * reach + 1) ** 2, B * SIDE**2 * P * SIZE
    return programs, Work(
        hbm=B * SIDE**2 * C * SIZE + pixels + classes * taps * C * P * SIZE,
        l2=taps * (B * SIDE**2 * C * SIZE + working * C * P * SIZE) + pixels,
        tensor=2 * working * block * taps * C * tiles(P, sizes["BLOCK_P"]) * sizes["BLOCK_P"],
        alu=working * block * sizes["BLOCK_P"],
    )
