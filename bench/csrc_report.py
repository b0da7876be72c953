"""What the CUDA C++ kernels compile to and what they may reach on a V100, estimated: nothing runs on a GPU.

    python -m bench.csrc_report      rewrites the section on csrc/ of bench/results/offline.md (minutes)

Needs g++, the compilers of ``bench/csrc_facts.py``, and an nvdisasm for sm_70 (``bench/csrc_replay.py``).
"""

import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import csrc_emulation, csrc_facts, csrc_replay
from bench.csrc_emulation import Emulation
from bench.csrc_replay import CLOCK, MULTIPROCESSORS, Rates
from ipt_fast.cli.tables import markdown_table

RESULT = Path(__file__).parent / "results" / "offline.md"
N, D_HEAD = 256, 48
# Useful FLOPs of a head, however often a kernel recomputes: two and five GEMMs of 2 N^2 d.
FLOPS = {"forward": 4 * N * N * D_HEAD, "backward": 10 * N * N * D_HEAD}
# DRAM bytes of a head: q, k, v, out; and in the backward also the four gradients. The embeddings stay in L2.
DRAM = {"forward": 4 * N * D_HEAD * 2, "backward": 8 * N * D_HEAD * 2}
LOW, HIGH = Rates(False, 600, 11.0), Rates(True, 400, 20.0)
# In the replay every tile is whole; the branches around its edge are never entered on a GPU at N = M = 256.
WHOLE = (("if (tile + step + F::kStep > M)", "if (false)"), ("if (warp * 32 + 32 > count)", "if (false)"))
LATE = (
    ("if (more) fetch_queries(query + F::kQueries);", ""),
    ("if (more) place_", "if (more) fetch_queries(query + F::kQueries), place_"),
)


@dataclass(frozen=True)
class Variant:
    """One way to instantiate a kernel, and how often its loops run (in the order of their ends) for N = M = 256."""

    direction: str
    label: str
    arguments: str
    warps: int
    blocks: int  # at the same time on a multiprocessor
    heads: float  # a block
    trips: tuple[int, ...]
    rows: int = 32
    idle: int = 0  # warps without a tile of dq
    changes: tuple[tuple[str, str], ...] = ()


VARIANTS = (
    Variant("forward", "**32 queries a warp, 4 warps, 3 blocks**", "48", 4, 3, 0.5, (2, 4)),
    Variant("forward", "the same, 2 blocks", "48, 32, 4, 64, 2", 4, 2, 0.5, (2, 4)),
    Variant("forward", "the same, 3 blocks, tiles of 32 keys", "48, 32, 4, 32, 3", 4, 3, 0.5, (8,)),
    Variant("forward", "32 queries, 8 warps, 1 block, all keys resident", "48, 32, 8, 256, 1", 8, 1, 1, (8, 1)),
    Variant("forward", "16 queries, 4 warps, 4 blocks", "48, 16, 4, 64, 4", 4, 4, 0.25, (2, 4), rows=16),
    Variant("forward", "16 queries, 8 warps, 2 blocks, tiles of 128", "48, 16, 8, 128, 2", 8, 2, 0.5, (4, 2), rows=16),
    Variant("forward", "16 queries, 16 warps, 1 block, all keys", "48, 16, 16, 256, 1", 16, 1, 1, (8, 1), rows=16),
    Variant("backward", "**8 warps, next queries loaded a step ahead**", "48", 8, 1, 1, (2, 4, 8), idle=2),
    Variant("backward", "8 warps, queries loaded when wanted", "48", 8, 1, 1, (2, 4, 8), idle=2, changes=LATE),
)
COLUMNS = ("kernel", "registers", "spilled", "warps an SM", "tensor", "port", "slow", "fma", "alu", "issue",
           "replay, clocks a head", "TFLOP/s")  # fmt: skip


def tables(emulation: Emulation, variant: Variant) -> tuple[dict[tuple[str, int], float], ...]:
    """Return wavefronts an instruction, split and merged, by opcode and bytes a lane."""
    totals: tuple[Counter[tuple[str, int]], ...] = (Counter(), Counter(), Counter())
    for _, size, write, *counts in run(emulation, variant.direction, variant.rows):
        for total, count in zip(totals, counts, strict=True):
            total["STS" if write else "LDS", size] += count
    instructions, *wavefronts = totals
    return tuple({key: total[key] / n for key, n in instructions.items()} for total in wavefronts)


def run(emulation: Emulation, direction: str, rows: int = 32) -> list[tuple[int, int, bool, int, int, int]]:
    """Return the wavefronts of one head, N = M = 256, both embeddings."""
    torch.manual_seed(0)
    q, k, v, grad, (q_embed, k_embed) = *torch.randn(4, 1, N, D_HEAD).half(), torch.randn(2, N, D_HEAD).half()
    emulation.configure(counts=True)
    out, lse = emulation.forward(q, k, v, 1, q_embed, k_embed, scale=0.15, rows_a_warp=rows)
    if direction == "backward":
        emulation.backward(grad, q, k, v, 1, q_embed, k_embed, out, lse, scale=0.15)
    return emulation.wavefronts()


def attained(direction: str, clocks: float) -> float:
    """Return TFLOP/s of all multiprocessors at ``clocks`` a head."""
    return FLOPS[direction] * MULTIPROCESSORS * CLOCK / clocks / 1e12


def estimate(emulation: Emulation, variant: Variant) -> tuple[object, ...]:
    """Return the cells of ``COLUMNS``."""
    text = (csrc_facts.CSRC / f"patch_attention_{variant.direction}.cu").read_text()
    for old, new in (*WHOLE, *variant.changes):
        text = text.replace(old, new)
    name = f"&ipt_fast::patch_attention_{variant.direction}<{variant.arguments}>"
    compiled = csrc_facts.nvrtc(text, 70, [name])
    code = csrc_replay.disassemble(compiled.cubin)
    busy, idle = (csrc_replay.walk(code, variant.trips, skips_loop=skips) for skips in (False, True))
    orders = [busy] * (variant.warps - variant.idle) + [idle] * variant.idle
    blocks = 4 * variant.blocks
    split, merged = tables(emulation, variant)
    work, ports = Counter[str](), []
    for table in (merged, split):
        work = Counter()
        for order in orders:
            work.update(csrc_replay.work(code, order, table))
        ports.append(work["port"] / variant.heads)
    if work["hmma"] / 16 * 8192 / variant.heads != FLOPS[variant.direction]:
        raise RuntimeError(f"{variant.label}: its loops do not run as often as stated")
    clocks = [
        csrc_replay.replay(code, orders, variant.blocks, blocks, table, rates) / (blocks * variant.heads)
        for table, rates in ((merged, HIGH), (split, LOW))
    ]
    a_scheduler = [round(work[pipe] / 4 / variant.heads) for pipe in ("tensor", "slow", "fma", "alu", "issue")]
    rates = [attained(variant.direction, n) for n in clocks]
    return (
        f"{variant.direction}, {variant.label}",
        re.findall(r"Used (\d+) registers", compiled.log)[0],
        sum(int(n) for n in re.findall(r"(\d+) bytes spill", compiled.log)),
        variant.warps * variant.blocks,
        a_scheduler[0],
        f"{ports[0]:.0f} to {ports[1]:.0f}",
        *a_scheduler[1:],
        f"{clocks[0]:.0f} to {clocks[1]:.0f}",
        f"{rates[1]:.0f} to {rates[0]:.0f}",
    )


def compiled_rows() -> list[tuple[object, ...]]:
    """Return what each kernel compiles to, by the compilers that are installed."""
    rows: list[tuple[object, ...]] = []
    for compiler, (archs, compile_file) in csrc_facts.compilers().items():
        for kernel in csrc_facts.KERNELS:
            for arch in (a for a in archs if a in kernel.archs):
                facts = compile_file(kernel.source, arch, kernel.expression)
                blocks = kernel.blocks if arch == 70 else ""
                used = (facts.registers, facts.spills, kernel.shared, facts.mma, blocks)
                rows.append((f"{kernel.direction}, d = {kernel.d}", facts.arch, compiler, *used))
    return rows


def access_rows(emulation: Emulation) -> list[tuple[object, ...]]:
    """Return where the wavefronts of a head come from, by the line of the source."""
    rows: list[tuple[object, ...]] = []
    for direction in ("forward", "backward"):
        lines = (csrc_facts.CSRC / f"patch_attention_{direction}.cu").read_text().splitlines()
        for line, size, write, n, split, merged in run(emulation, direction):
            if line < csrc_emulation.HEADER:
                what = f"`{lines[line - 1].strip()}`", f"{'store' if write else 'load'} {size}"
                rows.append((direction, *what, n, f"{split / n:.2g}", f"{merged / n:.2g}"))
    return rows


def far(rates: Rates) -> str:
    """Return in words what is assumed of global memory."""
    return (
        f"global memory {rates.global_latency} clocks away, {rates.global_bytes:.0f} bytes a clock and multiprocessor"
    )


def section(emulation: Emulation) -> str:
    """Return the section in Markdown."""
    floors = " and ".join(f"{size / (0.8e12 / MULTIPROCESSORS / CLOCK):,.0f}" for size in DRAM.values())
    used = ("registers", "spilled bytes", "shared bytes", "MMAs in the PTX", "blocks an SM")
    accesses = ("kernel", "line", "bytes a lane", "instructions", "wavefronts each, split", "merged")
    return f"""{csrc_facts.HEADING}

`python -m bench.csrc_report`. **Everything here is an estimate: nothing ran on a GPU.**

{markdown_table(("kernel", "arch", "compiler", *used), compiled_rows(), used)}
One MMA is 16 x 16 x 16: 16 HMMA on sm_70. Blocks: by registers (65,536) and shared memory (96 KB) of sm_70.

### Estimated clocks a head on a V100: N = M = {N}, d = {D_HEAD}, both embeddings, sm_70

{markdown_table(COLUMNS, [estimate(emulation, v) for v in VARIANTS], COLUMNS[1:])}
- Columns tensor to issue: clocks a head that each pipe of a scheduler is kept (a quarter of the warps' work), and port:
  clocks that the one port of shared memory is, with reads merged over a warp or split by quarters of it. Counted along
  the compiled code: HMMA 2, slow (exponentials, conversions) 8, the others 2, issue 1 an instruction; wavefronts as in
  the last table. The largest is what no schedule can beat; their sum, what no overlap at all would take, is 29 TFLOP/s
  for the forward in bold and 33 for the backward, with split reads.
- Replay: the assembler's own schedule, warps of all resident blocks sharing the pipes (`bench/csrc_replay.py`),
  {MULTIPROCESSORS} multiprocessors of {CLOCK / 1e9:.2f} GHz. The better figure: merged reads, {far(HIGH)};
  the worse: split, {far(LOW)}
  (an even share of DRAM's rate is 6.5, and a third to half comes from L2).
- TFLOP/s = useful FLOPs (forward 4 N^2 d, backward 10 N^2 d a head) x multiprocessors x clock rate / clocks a head.
  Tensor cores alone: 12,288 and 30,720 clocks. DRAM alone, at 0.8 TB/s: {floors}.
- The replaced two-pass forward by the same replay (its loads unrolled, assumptions in the middle): 93,400 clocks, 16.5
  TFLOP/s; a published simulator, adjusted, had 19.0. The two models differ by that much, and neither was compared with
  a V100 on this kernel.
- How far to trust it: the order in which the assembler happened to place the loads of a tile moved the forward's
  worse figure between 36 and 41 while nothing else changed. Variants closer than that are equal; decide on a card.
- Not modelled: instruction cache misses (the loop is larger than the smallest cache), register bank conflicts,
  clocks below boost, uneven ends of a grid.

### Wavefronts of shared memory, one head

Counted by the emulation (`tests/csrc`) with sm_70's own lane maps, read from its disassembly. Split: 16 bytes a lane
are served by quarters of a warp and 8 bytes by halves; merged: the whole warp at once. Which holds is not documented.

{markdown_table(accesses, access_rows(emulation), accesses[3:])}"""


def main() -> int:
    """Rewrite the section. Exit code 2 where something that it needs is missing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            text = section(Emulation(Path(folder)))
        except (RuntimeError, FileNotFoundError) as error:
            print(f"bench.csrc_report: {error}", file=sys.stderr)
            return 2
    RESULT.write_text(RESULT.read_text().partition(csrc_facts.HEADING)[0].rstrip() + "\n\n" + text)
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
