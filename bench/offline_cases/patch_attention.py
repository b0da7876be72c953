"""patch_attention's kernels at IPT's shapes, as its launchers start them."""

from typing import Any

import torch

from bench.offline_cases import OfflineCase
from ipt_fast.kernels._patch_attention_backward import keys_kernel, queries_kernel
from ipt_fast.kernels._patch_attention_tiles import split_head
from ipt_fast.kernels.patch_attention import Plan, forward_kernel, plan_backward, plan_forward

# N = M and d: the network, the deblurring network, and sizes that other networks have.
SHAPES = {"N=256 d=48": (256, 48), "N=1024 d=48": (1024, 48), "N=1024 d=32": (1024, 32), "N=255 d=59": (255, 59)}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def offline_cases() -> list[OfflineCase]:
    cases = []
    for dtype in DTYPES:
        for name, (N, d) in SHAPES.items():
            cases += _cases(name, N, d, dtype, embeds=True)
    cases += _cases("N=256 d=48, no embeds", 256, 48, "bf16", embeds=False)
    cases += _cases("N=1024 d=128", 1024, 128, "bf16", embeds=True)
    return cases + _cases("N=256 d=48", 256, 48, "fp32", embeds=True)


def _cases(name: str, N: int, d: int, dtype: str, embeds: bool) -> list[OfflineCase]:
    torch_dtype = DTYPES.get(dtype, torch.float32)
    forward, backward = plan_forward(N, N, d, torch_dtype), plan_backward(N, N, d, torch_dtype)
    cases = [
        _case(
            "forward",
            forward_kernel,
            name,
            N,
            d,
            dtype,
            embeds,
            forward,
            {"HELD": -(-N // forward.block_m) * forward.one, "POSITIVE": True},
        )
    ]
    if not backward.one:
        cases.append(_case("backward q", queries_kernel, name, N, d, dtype, embeds, backward, {}))
    label = "backward q k v" if backward.one else "backward k v"
    return [*cases, _case(label, keys_kernel, name, N, d, dtype, embeds, backward, {"ONE": backward.one})]


def _case(
    kernel: str, fn: Any, name: str, N: int, d: int, dtype: str, embeds: bool, plan: Plan, flags: dict[str, bool]
) -> OfflineCase:
    D0, D1 = split_head(d)
    consts = {
        **{"d": d, "D0": D0, "D1": D1, "BLOCK_N": plan.block_n, "BLOCK_M": plan.block_m},
        **{"EVEN_N": N % plan.block_n == 0, "EVEN_M": N % plan.block_m == 0},
        **flags,
        **({} if embeds else {"QE": None, "KE": None}),
        **({"DELTA": None} if flags.get("ONE") and fn is keys_kernel else {}),
    }
    types = {}
    for argument in fn.arg_names:
        if argument in consts:
            continue
        if argument in ("LSE", "DELTA"):
            types[argument] = "*fp32"
        elif (argument.isupper() and len(argument) > 1) or argument in "GQKV":
            types[argument] = f"*{dtype}"
        else:
            types[argument] = "fp32" if argument in ("scale", "unit") else "i32"
    for size in ("N", "M", "H"):
        types[size] = "i32"
    whole_rows = d * 12 % 16 == 0
    aligned = tuple(a for a in types if types[a].startswith("*") or (whole_rows and a.endswith(("_row", "_batch"))))
    return OfflineCase(
        op="patch_attention",
        kernel_name=kernel,
        fn=fn,
        types=types,
        consts=consts,
        align16=(
            *aligned,
            *(("N", "M", "rows") if N % 16 == 0 and "rows" in types else ("N", "M") if N % 16 == 0 else ()),
        ),
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
        needs_tensor_cores=dtype != "fp32",
        label=f"{dtype} {name}",
    )
