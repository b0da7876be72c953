"""patch_attention's kernels at IPT's shapes, as its launchers start them."""

import functools
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
    cases = [case for dtype in DTYPES for name, (N, d) in SHAPES.items() for case in _cases(name, N, d, dtype)]
    cases += _cases("N=256 d=48, no embeds", 256, 48, "bf16", embeds=False)
    return cases + _cases("N=1024 d=128", 1024, 128, "bf16") + _cases("N=256 d=48", 256, 48, "fp32")


def _cases(name: str, N: int, d: int, dtype: str, embeds: bool = True) -> list[OfflineCase]:
    torch_dtype = DTYPES.get(dtype, torch.float32)
    forward, backward = plan_forward(N, N, d, torch_dtype), plan_backward(N, N, d, torch_dtype)
    case = functools.partial(_case, name, N, d, dtype, embeds)
    cases = [case("forward", forward_kernel, forward, HELD=-(-N // forward.block_m) * forward.one, POSITIVE=True)]
    if not backward.one:
        cases.append(case("backward q", queries_kernel, backward))
    return [*cases, case("backward q k v" if backward.one else "backward k v", keys_kernel, backward, ONE=backward.one)]


def _case(
    name: str, N: int, d: int, dtype: str, embeds: bool, kernel: str, fn: Any, plan: Plan, **flags: bool
) -> OfflineCase:
    D0, D1 = split_head(d)
    consts: dict[str, Any] = {"d": d, "D0": D0, "D1": D1, **flags}
    consts |= {"BLOCK_N": plan.block_n, "EVEN_N": N % plan.block_n == 0}
    consts |= {"BLOCK_M": plan.block_m, "EVEN_M": N % plan.block_m == 0}
    consts |= dict.fromkeys(("QE", "KE") * (not embeds))
    known = {"LSE": "*fp32", "DELTA": "*fp32", "scale": "fp32", "unit": "fp32"}
    tensor = lambda a: f"*{dtype}" if (a.isupper() and len(a) > 1) or a in "GQKV" else "i32"  # noqa: E731
    types = {a: known.get(a, tensor(a)) for a in fn.arg_names if a not in consts}
    aligned = [a for a in types if d * 12 % 16 == 0 and a.endswith(("_row", "_batch"))]  # whole rows
    aligned += [a for a in types if N % 16 == 0 and a in ("N", "M", "rows")]
    options = {"num_warps": plan.num_warps, "num_stages": plan.num_stages, "needs_tensor_cores": dtype != "fp32"}
    label = f"{dtype} {name}"
    return OfflineCase("patch_attention", kernel, fn, types, consts, tuple(aligned), **options, label=label)
