"""The passes between the GEMMs of row_contrastive_loss, as the launchers start them."""

from typing import Any

from bench.offline_cases import OfflineCase
from ipt_fast.kernels import row_contrastive_loss as kernels

BLOCK = {"ROWS": kernels._ROWS, "COLUMNS": kernels._COLUMNS}


def offline_cases() -> list[OfflineCase]:
    sums, losses = kernels.softmax_sums_kernel, kernels.sigmoid_losses_kernel
    cases = [
        _case("softmax sums", sums, BLOCK, "rows and columns"),
        _case("softmax sums", sums, {**BLOCK, "BY_COLUMN": None}, "rows"),
        _case("softmax sums", sums, {**BLOCK, "BY_ROW": None}, "columns"),
        *(
            _case("merge sums", kernels.merge_sums_kernel, {"PARTS": parts, "BLOCK": kernels._MERGE}, f"{parts} parts")
            for parts in (1, 16, 64)
        ),
        _case("sigmoid losses", losses, BLOCK, ""),
    ]
    for dtype in ("fp16", "bf16", "fp32"):
        cases.append(_case("softmax gradient", kernels.softmax_gradient_kernel, BLOCK, f"to {dtype}", dtype))
        cases.append(_case("sigmoid gradient", kernels.sigmoid_gradient_kernel, BLOCK, f"to {dtype}", dtype))
    return cases


def _case(name: str, fn: Any, consts: dict[str, Any], label: str, dtype: str = "fp32") -> OfflineCase:
    names = [a for a in fn.arg_names if a not in consts]
    types = {a: (f"*{dtype}" if a == "G" else "*fp32") if a.isupper() else "i32" for a in names}
    # A tile has 2048 x 2048 elements at the most
    small, warps = tuple(a for a in names if a.isupper()), kernels._OPTIONS["num_warps"]
    return OfflineCase(
        "row_contrastive_loss", name, fn, types, consts, num_warps=warps, num_stages=3, fp_fusion=False,
        targets=(70, 80, 90, 100, 120), needs_tensor_cores=False, small=small, label=f"float32 {label}".strip(),
    )  # fmt: skip
