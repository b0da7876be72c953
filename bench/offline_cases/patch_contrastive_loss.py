"""patch_contrastive_loss's kernels at IPT's shape and at those of other networks, as the launchers start them."""

from typing import Any

import torch

from bench.offline_cases import OfflineCase
from ipt_fast.kernels._patch_contrastive_tiles import (
    logs_kernel,
    sums_kernel,
    unit_backward_kernel,
    unit_kernel,
    weights_kernel,
)
from ipt_fast.kernels.patch_contrastive_loss import _PAIRS, Plan, plan

# B, N, D: the network's own, a small batch, several tiles a position, no multiple of any tile, a few wide tokens.
SHAPES = [(64, 256, 576), (8, 256, 576), (256, 256, 576), (50, 257, 100), (64, 49, 1024)]
PROCESSORS = 132
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FEATURES = ("U", "X", "W", "OUT", "A", "C")  # pointers of the features' dtype; all others are float32
NUMBERS = ("B", "K", "N")
SMALL = ("QA", "QC", "LOG_GRAD", "LARGEST", "LOGS", "SUMS", "TOKEN_SUM")  # a number or a few an image


def offline_cases() -> list[OfflineCase]:
    """Return the kernels of a forward and a backward; the images of other ranks are those of three more."""
    cases = [case for shape in SHAPES for case in _gemms(shape, "bf16", "ieee")]
    cases += _gemms(SHAPES[0], "fp16", "ieee")
    cases += _gemms(SHAPES[0], "fp32", "ieee") + _gemms(SHAPES[0], "fp32", "tf32")
    cases += [case for shape in (SHAPES[0], SHAPES[3]) for dtype in ("bf16", "fp32") for case in _tokens(shape, dtype)]
    consts = {"PAIRS": _PAIRS, "IMAGES": 64}
    return [*cases, _case("forward logs", logs_kernel, SHAPES[0], "fp32", consts, needs_tensor_cores=False)]


def _gemms(shape: tuple[int, int, int], dtype: str, precision: str) -> list[OfflineCase]:
    p, tf32 = plan(*shape, DTYPES[dtype], PROCESSORS), precision == "tf32"
    consts = {"DP": p.DP, "IMAGES": p.images, "BLOCK": p.block, "BLOCK_D": p.block_d, "PRECISION": precision}
    kernels: list[tuple[str, Any, dict[str, Any]]] = [
        ("forward", sums_kernel, {"OWN": True}),
        ("backward weights", weights_kernel, {"OWN": True, "SYMMETRIC": False}),
        ("backward weights symmetric", weights_kernel, {"OWN": True, "SYMMETRIC": True}),
    ]
    if dtype == "bf16":
        kernels.append(("forward others", sums_kernel, {"OWN": False}))
    return [
        _case(name, fn, shape, dtype, {**consts, **flags, **_chunks(p, shape[0], flags["OWN"])}, " tf32" * tf32,
              num_warps=p.num_warps, num_stages=p.num_stages, needs_tensor_cores=dtype != "fp32" or tf32,
              targets=(80, 90, 100, 120) if dtype == "bf16" and shape[1:] == (256, 576) else (80, 90))
        for name, fn, flags in kernels
    ]  # fmt: skip


def _chunks(p: Plan, B: int, own: bool) -> dict[str, int]:
    """Return the numbers of tiles that Triton makes constants as they are 1."""
    numbers = {"a_chunks": p.chunks(B), "c_chunks": p.chunks(B if own else 3 * B)}
    return {name: number for name, number in numbers.items() if number == 1}


def _tokens(shape: tuple[int, int, int], dtype: str) -> list[OfflineCase]:
    p = plan(*shape, DTYPES[dtype], PROCESSORS)
    consts = {"D": shape[2], "DP": p.DP, "BLOCK_D": p.block_of_features, "ROWS": p.rows}
    consts |= {"IMAGES": p.images, "BLOCK": p.block}
    others = {**consts, "SUMS": None}
    kernels = (("unit tokens", unit_kernel, consts), ("unit tokens of others", unit_kernel, others),
               ("backward norm", unit_backward_kernel, consts))  # fmt: skip
    return [_case(name, fn, shape, dtype, with_, needs_tensor_cores=False) for name, fn, with_ in kernels]


def _case(
    name: str,
    fn: Any,
    shape: tuple[int, int, int],
    dtype: str,
    consts: dict[str, Any],
    suffix: str = "",
    **options: Any,
) -> OfflineCase:
    B, N, D = shape
    known = dict.fromkeys(FEATURES, f"*{dtype}") | dict.fromkeys(NUMBERS, "i32")
    types = {a: known.get(a, "i32" if a.islower() else "*fp32") for a in fn.arg_names if a not in consts}
    sizes = {"B": B, "K": B, "N": N, "pairs": N * N}
    aligned = tuple(a for a, size in sizes.items() if size % 16 == 0 and a in types)
    label = f"{dtype} B={B} N={N} D={D}{suffix}"
    small = tuple(a for a in SMALL if a in types)
    return OfflineCase("patch_contrastive_loss", name, fn, types, consts, aligned, small=small, label=label, **options)
