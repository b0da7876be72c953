"""The passes between the GEMMs of layernorm_linear and ffn: IPT's width, and others', as the launchers start them."""

from typing import Any

from bench.offline_cases import OfflineCase
from ipt_fast.kernels import norm_passes as kernels

VECTORS = {"WEIGHT": "*fp32", "BIAS": "*fp32", "MEAN": "*fp32", "RSTD": "*fp32", "PART": "*fp32", "eps": "fp32"}
TOKENS = ("X", "DX")  # of the residual stream's dtype; others are of the GEMM's


def offline_cases() -> list[OfflineCase]:
    pairs = [("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp16"), ("fp32", "fp32")]
    cases = [_norm(name, fn, D, *pair) for name, fn in _norms() for D in (576, 100, 1024, 4096) for pair in pairs]
    tile = {"ROWS": 16, "COLUMNS": 128}
    return cases + [
        _case("backward relu, bias", kernels.relu_backward_kernel, tile, dtype, dtype, f"{dtype} D_hidden=2304")
        for dtype in ("fp16", "bf16", "fp32")
    ]


def _norms() -> list[tuple[str, Any]]:
    return [("norm", kernels.norm_kernel), ("backward norm", kernels.norm_backward_kernel)]


def _norm(name: str, fn: Any, D: int, tokens: str, product: str) -> OfflineCase:
    plan = kernels.norm_plan(D)
    consts = {"D": D, **{k: v for k, v in plan.items() if k.isupper()}}
    return _case(name, fn, consts, tokens, product, f"{tokens} to {product} D={D}", num_warps=plan["num_warps"])


def _case(
    name: str, fn: Any, consts: dict[str, int], tokens: str, product: str, label: str, **options: int
) -> OfflineCase:
    known = VECTORS | dict.fromkeys(TOKENS, f"*{tokens}")
    names = [a for a in fn.arg_names if a not in consts]
    types = {a: known.get(a, f"*{product}" if a.isupper() else "i32") for a in names}
    sizes = tuple(a for a in ("rows", "columns") if a in types)
    options |= {"num_stages": 3}
    return OfflineCase(
        "layernorm_linear, ffn", name, fn, types, consts, sizes, targets=(70, 80, 90), needs_tensor_cores=False,
        label=label, **options,
    )  # fmt: skip
