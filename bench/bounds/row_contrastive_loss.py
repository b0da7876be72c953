"""The passes between the GEMMs of row_contrastive_loss, 128 B pairs in 16 bits, tile by tile of 2048 x 2048 logits."""

from bench.bounds.launch import Launch, Work, find_case, launch, tiles
from bench.offline_cases.row_contrastive_loss import offline_cases
from ipt_fast.gpus import GPUS
from ipt_fast.kernels import row_contrastive_loss as kernels
from ipt_fast.ops._row_contrastive_loss_gemm import _TILE

NUMBER = 4  # bytes


def launches(B: int, device: str) -> list[Launch]:
    """Return a launch a kernel. V100 has no bfloat16 GEMM: there G is float16."""
    dtype = "fp16" if GPUS[device].capability < (8, 0) else "bf16"
    pairs = 128 * B
    side = min(pairs, _TILE[0])
    times, cases = tiles(pairs, side) ** 2, offline_cases()
    row_blocks, column_blocks = tiles(side, kernels._ROWS), tiles(side, kernels._COLUMNS)  # 64 and 16, or fewer
    programs, logits = row_blocks * column_blocks, side * side
    parts = NUMBER * side * column_blocks, NUMBER * side * row_blocks  # bytes of a number a row, or column, and block
    both = 2 * sum(parts)
    work = {
        # Scale, two maxima, two differences, two sums and a product inside each exponential.
        ("softmax sums", "rows and columns"): moved(logits, both, exp=2, alu=9),
        # Differences, exponentials and products twice, their sum, the comparison with its choice, half a conversion.
        ("softmax gradient", f"to {dtype}"): moved(1.5 * logits, 0, logits, exp=2, alu=12.5),
        # Scale and bias, a choice with its sign; a quotient and 13 steps of the series; a sum.
        ("sigmoid losses", ""): moved(logits, parts[0], exp=2, alu=22),
        # Scale and bias, a choice, a quotient, a weight, a sum, half a conversion.
        ("sigmoid gradient", f"to {dtype}"): moved(1.5 * logits, parts[0], logits, exp=2, alu=9.5),
    }
    found = []
    for (name, label), of in work.items():
        case = find_case(cases, name, f"float32 {label}".strip())
        found.append(launch(case, "128 B pairs", B, programs, of, times=times))
    for blocks, merged in zip((column_blocks, row_blocks), parts, strict=True):
        of = Work(2 * merged, 2 * merged, exp=2 * blocks * side, alu=6 * blocks * side)
        axis = "rows" if blocks == column_blocks else "columns"
        case = find_case(cases, "merge sums", f"float32 {16 if blocks <= 16 else 64} parts")
        found.append(launch(case, f"128 B pairs, {axis}", B, tiles(side, kernels._MERGE), of, times=times))
    return found


def moved(numbers: float, parts: float, logits: float | None = None, *, exp: float, alu: float) -> Work:
    """Float32 numbers in or out, bytes of parts; exponentials (of a quotient, its reciprocal) and others a logit."""
    size, each = NUMBER * numbers + parts, numbers if logits is None else logits
    return Work(size, size, exp=exp * each, alu=alu * each)
