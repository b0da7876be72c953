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


# GPUs of the next generation, for which nothing was tuned: the kernels of the network, and the largest ones. The one
# backward kernel has a plan of its own there.
BLACKWELL = (100, 120)


def offline_cases() -> list[OfflineCase]:
    cases = [case for dtype in DTYPES for name, (N, d) in SHAPES.items() for case in _cases(name, N, d, dtype)]
    for name, absent in (("no embeds", ("QE", "KE")), ("q_embed alone", ("KE",))):
        cases += _cases(f"N=256 d=48, {name}", 256, 48, "bf16", absent=absent)
    cases += _cases("N=256 d=48, negative scale", 256, 48, "bf16", positive=False)[:1]
    cases += _cases("N=1 d=12, one head", 1, 12, "bf16", H=1) + _cases("N=257 d=48", 257, 48, "bf16")
    cases += [case for d in (7, 64, 100) for case in _cases(f"N=256 d={d}", 256, d, "bf16")]
    return cases + _cases("N=1024 d=128", 1024, 128, "bf16") + _cases("N=256 d=48", 256, 48, "fp32")


def _cases(
    name: str, N: int, d: int, dtype: str, absent: tuple[str, ...] = (), H: int = 12, positive: bool = True
) -> list[OfflineCase]:
    torch_dtype = DTYPES.get(dtype, torch.float32)
    newest = BLACKWELL if dtype == "bf16" and (d == 128 or (d == 48 and N % 16 == 0 and positive)) else ()
    case = functools.partial(_case, d=d, H=H, N=N, dtype=dtype, absent=absent, targets=(80, 90, *newest))
    forward, backward = plan_forward(N, N, d, torch_dtype), plan_backward(N, N, d, torch_dtype, (8, 0))
    held = -(-N // forward.block_m) * forward.one
    cases = [case("forward", name, forward_kernel, forward, HELD=held, POSITIVE=positive)]
    if not backward.one:
        cases.append(case("backward q", name, queries_kernel, backward))
        return [*cases, case("backward k v", name, keys_kernel, backward, ONE=False)]
    case = functools.partial(case, "backward q k v", fn=keys_kernel, ONE=True)
    cases.append(case(name, plan=backward, targets=(80, 90)))
    if newest:
        plan = plan_backward(N, N, d, torch_dtype, (10, 0))
        cases.append(case(f"{name}, {plan.block_n} at a time", plan=plan, targets=newest))
    return cases


def _case(
    kernel: str, name: str, fn: Any, plan: Plan, *, N: int, d: int, H: int, dtype: str, absent: tuple[str, ...],
    targets: tuple[int, ...], **flags: int,
) -> OfflineCase:  # fmt: skip
    D0, D1 = split_head(d)
    consts: dict[str, Any] = {"d": d, "D0": D0, "D1": D1, **flags}
    consts |= {"BLOCK_N": plan.block_n, "EVEN_N": N % plan.block_n == 0}
    consts |= {"BLOCK_M": plan.block_m, "EVEN_M": N % plan.block_m == 0}
    consts |= dict.fromkeys(absent) | {a: 1 for a, size in {"N": N, "M": N, "H": H}.items() if size == 1}
    known = {"LSE": "*fp32", "DELTA": "*fp32", "scale": "fp32", "unit": "fp32"}
    tensor = lambda a: f"*{dtype}" if (a.isupper() and len(a) > 1) or a in "GQKV" else "i32"  # noqa: E731
    types = {a: known.get(a, tensor(a)) for a in fn.arg_names if a not in consts}
    aligned = [a for a in types if d * H % 16 == 0 and a.endswith(("_row", "_batch"))]  # whole rows
    aligned += [a for a in types if N % 16 == 0 and a in ("N", "M", "rows")]
    options = {"num_warps": plan.num_warps, "num_stages": plan.num_stages, "needs_tensor_cores": dtype != "fp32"}
    label = f"{dtype} {name}"
    options |= {"targets": targets, "small": ("QE", "KE")}  # small: one image's
    return OfflineCase("patch_attention", kernel, fn, types, consts, tuple(aligned), **options, label=label)
