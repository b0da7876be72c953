"""Estimate a kernel's clocks on a V100 by replaying the assembler's own schedule. Nothing runs on a GPU.

The compiled code holds, beside each instruction, what the hardware obeys: how long to wait before the next one, and
which results to wait for. Warps of all blocks that fit on a multiprocessor issue their instructions under these rules,
one a clock and scheduler, into pipes with the rates below; one loop over keys is walked as often as it runs, branches
forward are not taken. Needs an nvdisasm that knows sm_70 (CUDA 13.0 or older), on the path or named by $NVDISASM.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

CLOCK, MULTIPROCESSORS = 1.53e9, 80  # V100 SXM2, boost; 512 tensor FMA a clock each: 125 TFLOP/s

# Clocks that an instruction of a warp keeps its pipe (16 lanes, 4 of the slow one, 128 tensor FMA, a scheduler). HMMA
# is a sixteenth of an MMA of 16 x 16 x 16.
BUSY = {"tensor": 2, "slow": 8, "fma": 2, "alu": 2}
_SLOW = {"MUFU", "F2F", "F2I", "I2F", "POPC", "FLO", "FRND"}
_FMA = {"FFMA", "FADD", "FMUL", "IMAD"}
_SHARED, _GLOBAL = {"LDS", "STS", "SHFL"}, {"LDG", "STG", "LDL", "STL"}


@dataclass(frozen=True)
class Rates:
    """What is not known for certain. Latencies in clocks."""

    merged: bool  # lanes that read the same word share a wavefront across the whole warp, not in quarters of it
    global_latency: int
    global_bytes: float  # a clock and multiprocessor, L2 and DRAM mixed
    tensor_to_tensor: int = 4  # after the last of four steps, so that a dependent four start 10 later
    tensor_to_other: int = 12
    shared_latency: int = 22
    slow_latency: int = 30
    barrier: int = 20
    branch: int = 8


@dataclass(frozen=True)
class Instruction:
    """One line of the disassembly with its scheduling bits; ``target`` is the index that a branch goes to."""

    opcode: str
    predicated: bool
    stall: int
    sets: tuple[int, ...]  # barriers that its result or its reading of operands releases
    waits: tuple[int, ...]
    target: int | None = None

    @cached_property
    def base(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @cached_property
    def bytes(self) -> int:
        """Bytes a lane of a load or store."""
        width = re.search(r"\.(64|128)\b", self.opcode)
        return int(width[1]) // 8 if width else 2 if ".U16" in self.opcode else 4

    @cached_property
    def pipe(self) -> str:
        """Where it is executed."""
        for pipe, opcodes in (("shared", _SHARED), ("global", _GLOBAL), ("slow", _SLOW), ("fma", _FMA)):
            if self.base in opcodes:
                return pipe
        return {"HMMA": "tensor", "BAR": "barrier"}.get(self.base, "alu")


def nvdisasm() -> str | None:
    """Return the disassembler that is asked for or found."""
    return os.environ.get("NVDISASM") or shutil.which("nvdisasm")


def disassemble(cubin: bytes) -> list[Instruction]:
    """Return the instructions of a cubin with one kernel. Raises RuntimeError where there is no disassembler for it."""
    tool = nvdisasm()
    if tool is None:
        raise RuntimeError("nvdisasm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([tool, "-c", "-hex", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm: {(done.stdout + done.stderr).strip()[:300]}")
    return parse(done.stdout)


def parse(text: str) -> list[Instruction]:
    """Read what ``nvdisasm -c -hex`` prints: 16 bytes an instruction, the scheduling bits on top."""
    labels: dict[str, int] = {}
    rows: list[tuple[str, int, str | None]] = []
    lines = iter(text.splitlines())
    for line in lines:
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(rows)
        if code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/", line):
            bits = re.search(r"/\* 0x([0-9a-f]{16}) \*/", next(lines))
            goal = re.search(r"`\((\.L\w+)\)", code[1])
            rows.append((code[1], int(bits[1], 16) if bits else 0, goal[1] if goal else None))
    instructions = []
    for words, high, target in rows:
        predicate, _, rest = words.partition(" ") if words.startswith("@") else ("", "", words)
        sets = tuple(b for b in (high >> 46 & 7, high >> 49 & 7) if b < 6)
        waits = tuple(b for b in range(6) if high >> (52 + b) & 1)
        opcode = rest.split()[0]
        instructions.append(
            Instruction(opcode, bool(predicate), max(1, high >> 41 & 15), sets, waits, labels.get(target or ""))
        )
    return instructions


def walk(code: Sequence[Instruction], trips: Sequence[int], skips_loop: bool = False) -> list[int]:
    """Return the indices in the order in which a warp runs them.

    Args:
        code: of one kernel.
        trips: how often each loop runs, in the order of the loops' ends; once where there are more loops.
        skips_loop: the warp jumps over a loop that holds no barrier where it can (it has no tile of dq).
    """
    # The end: an exit, or the jump back to another chunk of keys behind an exit; what follows is slow divisions.
    always = [(i, x) for i, x in enumerate(code) if not x.predicated]
    end = next(i for i, x in always if x.base == "EXIT" or (x.base == "BRA" and x.target is not None and x.target < i))
    branches = {i: x.target for i, x in enumerate(code[:end]) if x.base == "BRA" and x.predicated}
    back = {i: target for i, target in branches.items() if target is not None and target <= i}
    runs = dict(zip(back, (*trips, *[1] * len(back)), strict=False))
    left, order, at = {i: n - 1 for i, n in runs.items()}, [], 0
    while True:
        x = code[at]
        order.append(at)
        if at == end:
            return order
        if x.base == "BRA" and x.target is not None and _taken(code, at, back, left, skips_loop):
            at = x.target
            continue
        if at in left:
            left[at] = runs[at] - 1
        at += 1


def _taken(code: Sequence[Instruction], at: int, back: Mapping[int, int], left: dict[int, int], skips: bool) -> bool:
    x = code[at]
    assert x.target is not None
    if at in left:
        left[at] -= 1
        return left[at] >= 0
    if not x.predicated:
        return ".DIV" not in x.opcode
    # What would be left out: a loop of the idle warps; or nothing, where the way on goes around a barrier.
    body = code[at : x.target]
    if skips and any(at < i < x.target and start > at for i, start in back.items()):
        return all(y.base != "BAR" for y in body)
    near = code[at + 1 : min(at + 40, x.target)]
    beyond = next((y.target for y in near if y.base == "BRA" and not y.predicated), None)
    return beyond is not None and any(y.base == "BAR" for y in code[x.target : beyond])


Wavefronts = Mapping[tuple[str, int], float]  # opcode and bytes a lane -> wavefronts an instruction


def wavefronts(x: Instruction, table: Wavefronts) -> float:
    """Return the clocks that an access keeps the port of shared memory."""
    return 1 if x.base == "SHFL" else table.get((x.base, x.bytes), max(1, x.bytes / 4))


def work(code: Sequence[Instruction], order: Sequence[int], table: Wavefronts) -> Counter[str]:
    """Return the clocks that one warp keeps each pipe of its scheduler (and the multiprocessor's port), if alone."""
    clocks: Counter[str] = Counter()
    for x in (code[i] for i in order):
        clocks["issue"] += 1
        clocks["hmma"] += x.base == "HMMA"
        if x.pipe in BUSY:
            clocks[x.pipe] += BUSY[x.pipe]
        elif x.pipe == "shared":
            clocks["port"] += wavefronts(x, table)  # type: ignore[assignment]
    return clocks


@dataclass
class _Warp:
    order: Sequence[int]
    block: int
    at: int = 0
    ready: float = 0.0
    parked: bool = False
    free: list[float] = field(default_factory=lambda: [0.0] * 6)  # when each barrier is released
    free_outside: list[float] = field(default_factory=lambda: [0.0] * 6)  # for others than the tensor cores


def replay(
    code: Sequence[Instruction],
    orders: Sequence[Sequence[int]],
    resident: int,
    blocks: int,
    table: Wavefronts,
    r: Rates,
) -> float:
    """Return the clocks of ``blocks`` blocks on one multiprocessor, ``resident`` at a time; a warp for each order."""
    warps: list[list[_Warp]] = [[], [], [], []]
    pipes: list[dict[str, float]] = [{}, {}, {}, {}]
    waiting: dict[int, list[_Warp]] = {}
    running: Counter[int] = Counter()
    started = now = 0
    port = memory = 0.0
    last: list[_Warp | None] = [None] * 4

    def start(when: float) -> None:
        nonlocal started
        for order in orders:
            min(warps, key=len).append(_Warp(order, started, ready=when))
        running[started] = len(orders)
        started += 1

    def earliest(warp: _Warp, scheduler: int) -> float:
        x = code[warp.order[warp.at]]
        when = warp.ready
        for barrier in x.waits:
            when = max(when, warp.free[barrier])
            if x.pipe != "tensor":
                when = max(when, warp.free_outside[barrier])
        if x.pipe == "shared":
            when = max(when, port - 24)  # what may queue for the port
        return max(when, pipes[scheduler].get("memory" if x.pipe in ("shared", "global") else x.pipe, 0))

    while started < min(resident, blocks):
        start(0)
    while running:
        soonest = float("inf")
        for s in range(4):
            times = [(earliest(w, s), w is not last[s], w.block, i) for i, w in enumerate(warps[s]) if not w.parked]
            able = [(other, block, i) for when, other, block, i in times if when <= now]
            if not able:
                soonest = min([soonest, *(when for when, *_ in times)])
                continue
            soonest = now + 1
            warp = last[s] = warps[s][min(able)[2]]  # the same one as long as it can, else the oldest block's
            x = code[warp.order[warp.at]]
            warp.at += 1
            warp.ready = now + max(x.stall, r.branch if x.base == "BRA" else 0)
            done: float = now
            if x.pipe in BUSY:
                pipes[s][x.pipe] = now + BUSY[x.pipe]
                done = now + {"tensor": r.tensor_to_tensor, "slow": r.slow_latency}.get(x.pipe, r.tensor_to_other)
            elif x.pipe == "shared":
                pipes[s]["memory"] = now + 2
                port = max(port, now + 4) + wavefronts(x, table)
                done = port + r.shared_latency - 4
            elif x.pipe == "global":
                pipes[s]["memory"] = now + 4
                # Six of eight lanes load 16 bytes; stores of pairs fill half of each sector.
                memory = max(memory, now) + (24 * 16 if x.bytes == 16 else 64 * x.bytes) / r.global_bytes
                done = memory + r.global_latency if x.base in ("LDG", "LDL") else now + 20
            for barrier in x.sets:
                warp.free[barrier] = max(warp.free[barrier], done)
                if x.pipe == "tensor":
                    warp.free_outside[barrier] = now + r.tensor_to_other
            if warp.at == len(warp.order):
                warps[s].remove(warp)
                running[warp.block] -= 1
                if not running[warp.block]:
                    del running[warp.block]
                    if started < blocks:
                        start(now + 300)
            elif x.pipe == "barrier":
                warp.parked = True
                here = waiting.setdefault(warp.block, [])
                here.append(warp)
                if len(here) == len(orders):
                    for w in waiting.pop(warp.block):
                        w.parked, w.ready = False, now + r.barrier
        now = int(max(now + 1, soonest)) if soonest < float("inf") else now + 1
    return now
