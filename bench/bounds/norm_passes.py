"""The passes between the GEMMs of a block: B x 256 tokens of 576, hidden 2304, the stream in the GEMM's dtype."""

from bench.bounds.launch import Launch, Work, find_case, launch, tiles
from bench.offline_cases.norm_passes import offline_cases
from ipt_fast.gpus import GPUS
from ipt_fast.kernels import norm_passes as kernels

N, D, HIDDEN, SIZE = 256, 576, 2304, 2


def launches(B: int, device: str) -> list[Launch]:
    """Return a launch a kernel."""
    dtype = "fp16" if GPUS[device].capability < (8, 0) else "bf16"
    cases, rows, plan = offline_cases(), B * N, kernels.norm_plan(D)
    programs, _ = kernels._shares(rows, plan["ROWS"])
    work = {
        # Tensors in and out; parts of the sums; instructions a feature.
        "norm": (tiles(rows, plan["ROWS"]), norm_work(rows, 2, 0, 8)),
        "add, norm": (tiles(rows, plan["ROWS"]), norm_work(rows, 4, 0, 11)),
        "backward norm": (programs, norm_work(rows, 3, 2 * programs, 14)),
        "backward norm, add": (programs, norm_work(rows, 4, 3 * programs, 17)),
    }
    label, shape = f"{dtype} to {dtype} D={D}", f"D={D}"
    found = [launch(find_case(cases, name, label), shape, B, *numbers) for name, numbers in work.items()]
    shares, _ = kernels._shares(rows, 16 * kernels._RELU_ROWS)
    case = find_case(cases, "backward relu, bias", f"{dtype} D_hidden={HIDDEN}")
    across = tiles(HIDDEN, kernels._RELU_COLUMNS)
    found.append(launch(case, f"D_hidden={HIDDEN}", B, across * shares, relu_work(rows, shares)))
    case = find_case(cases, "sum of the parts", f"float32 to {dtype}")
    summed = Work(4 * shares * HIDDEN, 4 * shares * HIDDEN, alu=2 * shares * HIDDEN)
    return [*found, launch(case, f"D_hidden={HIDDEN}", B, tiles(HIDDEN, kernels._SUM_COLUMNS), summed)]


def norm_work(rows: int, tensors: int, parts: int, instructions: int) -> Work:
    """Each tensor once, two float32 a row, float32 parts [D]. Lanes up to a power of two go along. Feature: a
    conversion in, half a one out for each tensor; the mean, the difference and its square with sums; scale and shift;
    in the backward the sums of both gradients, two sums along the row, two differences.
    """
    moved = rows * (tensors * D * SIZE + 8) + 4 * parts * D
    return Work(moved, moved, exp=rows, alu=instructions * rows * kernels.norm_plan(D)["BLOCK_D"])


def relu_work(rows: int, shares: int) -> Work:
    """Gradient and hidden activation in, gradient out, a float32 part [2304] a share. Number: a comparison with its
    choice, a conversion, a sum, half a conversion.
    """
    moved = 3 * rows * HIDDEN * SIZE + 4 * shares * HIDDEN
    return Work(moved, moved, alu=4.5 * rows * HIDDEN)
