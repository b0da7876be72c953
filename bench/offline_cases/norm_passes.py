"""The passes between the GEMMs of layernorm_linear and ffn: IPT's width, and others', as the launchers start them."""

from typing import Any

from bench.offline_cases import OfflineCase
from ipt_fast.kernels import norm_passes as kernels

VECTORS = dict.fromkeys(("WEIGHT", "BIAS", "MEAN", "RSTD", "PART", "WIDE"), "*fp32") | {"eps": "fp32"}
TOKENS = ("X", "DX", "BRANCH", "SUM", "PAST")  # of the residual stream's dtype; others are of the GEMM's


def offline_cases() -> list[OfflineCase]:
    pairs = [("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp16"), ("fp32", "fp32")]
    cases = [
        _norm(name, fn, D, *pair, absent)
        for name, fn, absent in _norms()
        for D in (576, 100, 1024, 4096)
        for pair in pairs
        if absent or pair[0] == pair[1]  # the stream of training has one dtype
        if D == 576 or pair in (pairs[0], pairs[-1])  # other widths: the two sizes of a number
    ]
    relu, total = {"ROWS": 16, "COLUMNS": 128}, {"ROWS": 128, "COLUMNS": 16}
    for dtype in ("fp16", "bf16", "fp32"):
        label = f"{dtype} D_hidden=2304"
        cases.append(_case("backward relu, bias", kernels.relu_backward_kernel, relu, dtype, dtype, label))
        cases.append(_case("sum of the parts", kernels.sum_parts_kernel, total, dtype, dtype, f"float32 to {dtype}"))
    return cases


def _norms() -> list[tuple[str, Any, tuple[str, ...]]]:
    """Return name, kernel, and the pointers that are None."""
    return [
        ("norm", kernels.norm_kernel, ("BRANCH", "SUM")),
        ("add, norm", kernels.norm_kernel, ()),
        ("backward norm", kernels.norm_backward_kernel, ("PAST",)),
        ("backward norm, add", kernels.norm_backward_kernel, ()),
    ]


def _norm(name: str, fn: Any, D: int, tokens: str, product: str, absent: tuple[str, ...]) -> OfflineCase:
    plan = kernels.norm_plan(D)
    consts = {"D": D, **{k: v for k, v in plan.items() if k.isupper()}, **dict.fromkeys(absent)}
    return _case(name, fn, consts, tokens, product, f"{tokens} to {product} D={D}", num_warps=plan["num_warps"])


def _case(
    name: str, fn: Any, consts: dict[str, Any], tokens: str, product: str, label: str, **options: int
) -> OfflineCase:
    known = VECTORS | dict.fromkeys(TOKENS, f"*{tokens}")
    names = [a for a in fn.arg_names if a not in consts]
    types = {a: known.get(a, f"*{product}" if a.isupper() else "i32") for a in names}
    sizes = tuple(a for a in ("rows", "columns", "narrow") if a in types)
    options |= {"num_stages": 3}
    return OfflineCase(
        "layernorm_linear, ffn", name, fn, types, consts, sizes, targets=(70, 80, 90), needs_tensor_cores=False,
        small=("WEIGHT", "BIAS", "PART", "NARROW", "WIDE"),
        label=label, **options,
    )  # fmt: skip
