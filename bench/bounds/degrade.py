"""degrade's kernels on crops of 48 x 48 pixels (super-resolution: of what becomes that, with its margin)."""

from bench.bounds.launch import Launch, Work, find_case, launch, tiles
from bench.offline_cases.degrade import MARGIN, S, offline_cases
from bench.offline_cases.degrade import B as CASE_B
from ipt_fast.kernels import degrade as kernels

PIXELS = S * S
MOVED = 27  # bytes a pixel: three uint8 in, six float32 out
TOUCHING, STREAK = 18, 32  # streaks that touch a crop on average, bytes of one
CELLS = 20  # rows of 16 cells in reach of a crop


def launches(B: int, device: str) -> list[Launch]:
    """Return a launch a kernel."""
    cases, crops = offline_cases(), f"{CASE_B} crops of {S}x{S}"
    tile, shape = kernels.RAIN_PLAN["BLOCK_Y"] * kernels.RAIN_PLAN["BLOCK_X"], f"{S}x{S}"
    given = Work(B * PIXELS * (MOVED + 4), B * PIXELS * (MOVED + 4), alu=20 * B * PIXELS)
    work = {
        "noise": (B * tiles(PIXELS, kernels.NOISE_PLAN["BLOCK"]), noise_work(B)),
        "rain streaks": (B * tiles(CELLS, kernels.STREAKS_PLAN["ROWS"]), streaks_work(B)),
        "rain": (B * tiles(PIXELS, tile), rain_work(B, tile)),
        "rain of the caller": (B * tiles(PIXELS, tile), given),
    }
    found = [launch(find_case(cases, name, crops), shape, B, *numbers) for name, numbers in work.items()]
    for scale in (2, 3, 4):
        side = (S + 2 * MARGIN) * scale
        case = find_case(cases, f"shrink x{scale}", f"{CASE_B} crops of {side}x{side}")
        found.append(launch(case, f"{side}x{side}", B, *shrink_work(B, scale)))
    return found


def noise_work(B: int) -> Work:
    """About 340 instructions a pixel as the kernel's file says; of them two logarithms and two roots."""
    return Work(B * PIXELS * MOVED, B * PIXELS * MOVED, exp=4 * B * PIXELS, alu=340 * B * PIXELS)


def streaks_work(B: int) -> Work:
    """Cells: two calls of Philox, about 300 instructions and 10 slow ones; every thread of three programs draws what
    the streaks of an image have in common, as much again.
    """
    drawn = 24 * 16 + 3 * 32 * kernels.STREAKS_PLAN["num_warps"]
    moved = B * (TOUCHING * STREAK + 4 * CELLS)
    return Work(moved, moved, exp=10 * B * drawn, alu=300 * B * drawn)


def rain_work(B: int, tile: int) -> Work:
    """About 250 instructions a pixel as the kernel's file says, six streaks of one exponential; each tile reads the
    list once.
    """
    listed = TOUCHING * STREAK + 4 * CELLS
    return Work(
        hbm=B * (PIXELS * MOVED + listed),
        l2=B * (PIXELS * MOVED + tiles(PIXELS, tile) * listed),
        exp=6 * B * PIXELS,
        alu=250 * B * PIXELS,
    )


def shrink_work(B: int, scale: int) -> tuple[int, Work]:
    """Read the crop, and once more from L2 for the target; write both results.

    For each phase and tap of a column a load, a conversion and a product with its sum, for each phase nine more with
    the rounding; a lane for each of ``BLOCK_W`` columns.
    """
    sizes, taps = kernels.shrink_plan(scale), 4 * scale - scale % 2
    programs = 3 * B * tiles(S, sizes["BLOCK_H"]) * tiles(S, sizes["BLOCK_W"] - 3)
    clean = 3 * B * ((S + 2 * MARGIN) * scale) ** 2
    written = 4 * 3 * B * PIXELS * (1 + scale**2)
    lanes = programs * sizes["BLOCK_H"] * sizes["BLOCK_W"]
    copied = 3 * B * PIXELS * scale**2
    return programs, Work(clean + written, 2 * clean + written, alu=lanes * scale * (3 * taps + 9) + 3 * copied)
