"""pixelshuffle_tail's kernel for the tails of x2, x3 and x4 with 64 features, as its launcher starts it."""

import torch

from bench.offline_cases import OfflineCase
from ipt_fast.kernels.pixelshuffle_tail import plan, tail_kernel

# R, frame, reach of the 3x3 chains; C features, O channels out.
SHAPES = {"x2": (2, 1, 2, 64, 3), "x3": (3, 1, 2, 64, 3), "x4": (4, 1, 2, 64, 3), "x4 256 features": (4, 1, 2, 256, 3)}


def offline_cases() -> list[OfflineCase]:
    cases = [_case(name, *shape, dtype) for dtype in ("fp16", "bf16") for name, shape in SHAPES.items()]
    cases.append(_case("x2, 1x1 after 3x3, one image", 2, 0, 1, 64, 3, "bf16", B=1))
    return [*cases, _case("x2 16 features", 2, 1, 2, 16, 3, "bf16"), _case("x2", 2, 1, 2, 64, 3, "fp32")]


def _case(name: str, R: int, frame: int, reach: int, C: int, O: int, dtype: str, B: int = 2) -> OfflineCase:
    sizes = plan(C, O * R * R, torch.float32 if dtype == "fp32" else torch.bfloat16)
    types = dict.fromkeys(("X", "KERNELS", "BIAS", "OUT"), f"*{dtype}")
    types |= dict.fromkeys(("x_batch", "x_row", "x_column", "B", "H", "W", "C", "P"), "i32")
    consts = {"FRAME_Y": frame, "FRAME_X": frame, "REACH_Y": reach, "REACH_X": reach, "R": R}
    consts |= {k: v for k, v in sizes.items() if k.isupper()} | {"PRECISION": "ieee" if dtype == "fp32" else "tf32"}
    if B == 1:  # Triton takes a size of 1 as a constant
        del types["B"]
        consts["B"] = 1
    options = {k: v for k, v in sizes.items() if k.islower()} | {"needs_tensor_cores": dtype != "fp32"}
    options |= {
        "small": ("KERNELS", "BIAS"),
        "targets": (80, 90, 100, 120) if dtype == "bf16" and C == 64 else (80, 90),
    }
    aligned, label = ("x_batch", "x_row", "x_column", "C"), f"{dtype} {name}"
    return OfflineCase("pixelshuffle_tail", "forward", tail_kernel, types, consts, aligned, **options, label=label)
