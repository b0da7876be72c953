"""degrade's kernels on the crops of the six tasks and on channels-last ones, as the launchers start them."""

from typing import Any

from bench.offline_cases import OfflineCase
from ipt_fast.kernels import degrade as kernels

B, S, MARGIN = 256, 48, 2
POINTERS = {"CLEAN": "*u8", "SEEDS": "*i64", "COUNTS": "*i32", "sigma": "fp32"}  # other capitals: float32 pointers


def offline_cases() -> list[OfflineCase]:
    planes, last = {"x_column": 1}, {"x_channel": 1}  # PyTorch's order of the axes, and channels-last
    listed, given = {"LAYERS": None, "groups": 1}, {"STREAKS": None, "COUNTS": None, "cell_rows": 0, "groups": 0}
    cases = [
        *(_case("noise", kernels.noise_kernel, layout, kernels.NOISE_PLAN) for layout in (planes, last)),
        _case("rain streaks", kernels.streaks_kernel, {"groups": 1}, kernels.STREAKS_PLAN),
        *(_case("rain", kernels.rain_kernel, {**layout, **listed}, kernels.RAIN_PLAN) for layout in (planes, last)),
        _case("rain of the caller", kernels.rain_kernel, {**planes, **given}, kernels.RAIN_PLAN),
    ]
    return cases + [
        _case(f"shrink x{scale}", kernels.shrink_kernel, {**layout, "SCALE": scale}, kernels.shrink_plan(scale), scale)
        for scale in (2, 3, 4)
        for layout in (planes, last)
    ]


def _case(name: str, fn: Any, consts: dict[str, Any], plan: dict[str, int], scale: int = 0) -> OfflineCase:
    side = (S + 2 * MARGIN) * scale if scale else S
    layout = " channels last" if "x_channel" in consts else ""
    consts = {**consts, **{k: v for k, v in plan.items() if k.isupper()}}
    names = [a for a in fn.arg_names if a not in consts]
    types = {a: POINTERS.get(a, "*fp32" if a.isupper() and len(a) > 1 else "i32") for a in names}
    sides = ("H", "W", "pixels", "x_batch", "x_row") if side % 16 == 0 else ("x_batch",)
    options = {"num_warps": plan["num_warps"], "num_stages": 3, "fp_fusion": plan.get("enable_fp_fusion", True)}
    options |= {"targets": (70, 80, 90), "needs_tensor_cores": False, "label": f"{B} crops of {side}x{side}{layout}"}
    return OfflineCase("degrade", name, fn, types, consts, tuple(a for a in sides if a in types), **options)
