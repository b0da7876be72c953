"""patch_contrastive_loss's kernels at IPT's shape and at those of other networks, as the launchers start them."""

from dataclasses import replace
from typing import Any

import torch

from bench.offline_cases import OfflineCase
from ipt_fast.kernels.patch_contrastive_loss import norm_backward_kernel, plan, sums_kernel, unit_kernel, weights_kernel

# B, N, D: the network's own, a small batch, no multiple of any tile, a few wide tokens.
SHAPES = [(64, 256, 576), (8, 256, 576), (64, 257, 100), (64, 49, 1024)]
PROCESSORS = 132
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FEATURES = ("U", "X", "W", "OUT")  # pointers of the features' dtype; all others are float32


def offline_cases() -> list[OfflineCase]:
    cases = [case for shape in SHAPES for dtype in ("fp16", "bf16") for case in _gemms(shape, dtype, "ieee")]
    cases += _gemms(SHAPES[0], "fp32", "ieee") + _gemms(SHAPES[0], "fp32", "tf32")
    cases += [case for shape in SHAPES[::2] for dtype in ("bf16", "fp32") for case in _norms(shape, dtype)]
    others = _norms(SHAPES[0], "bf16")[0]
    types = {a: kind for a, kind in others.types.items() if a != "SUMS"}
    label = others.label + ", of other ranks"
    return [*cases, replace(others, types=types, consts={**others.consts, "SUMS": None}, label=label)]


def _gemms(shape: tuple[int, int, int], dtype: str, precision: str) -> list[OfflineCase]:
    p = plan(*shape, DTYPES[dtype], PROCESSORS)
    consts = {"DP": p.DP, "BLOCK": p.block, "BLOCK_D": p.block_d, "EVEN": shape[1] == p.NP, "PRECISION": precision}
    tf32 = precision == "tf32"
    return [
        _case(name, fn, shape, dtype, consts, " tf32" * tf32, num_warps=p.num_warps, num_stages=p.num_stages,
              needs_tensor_cores=dtype != "fp32" or tf32, small=("LOGS",),
              targets=(80, 90, 100, 120) if dtype == "bf16" and shape[1:] == (256, 576) else (80, 90))
        for name, fn in (("forward", sums_kernel), ("backward weights", weights_kernel))
    ]  # fmt: skip


def _norms(shape: tuple[int, int, int], dtype: str) -> list[OfflineCase]:
    p = plan(*shape, DTYPES[dtype], PROCESSORS)
    consts = {"D": shape[2], "DP": p.DP, "BLOCK_D": p.block_of_features, "ROWS": p.rows}
    kernels = (("unit tokens", unit_kernel), ("backward norm", norm_backward_kernel))
    return [_case(name, fn, shape, dtype, consts, needs_tensor_cores=False) for name, fn in kernels]


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
    features, numbers = dict.fromkeys(FEATURES, f"*{dtype}"), dict.fromkeys(("K", "N", "NP"), "i32")
    known = features | numbers
    types = {a: known.get(a, "i32" if a.islower() else "*fp32") for a in fn.arg_names if a not in consts}
    sizes = tuple(a for a in (("NP", "N") if N % 16 == 0 else ("NP",)) if a in types)
    label = f"{dtype} B={B} N={N} D={D}{suffix}"
    return OfflineCase("patch_contrastive_loss", name, fn, types, consts, sizes, label=label, **options)
