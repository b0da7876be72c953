"""From work and compiled code to times: each pipe at its peak rate, the blocks that an SM holds, the last wave."""

from bench.bounds.launch import Launch
from bench.count.rates import Peak
from bench.ptx_facts import PtxFacts

PIPES = ("HBM", "L2", "tensor", "exp", "ALU")


def resident_blocks(facts: PtxFacts, warps: int, peak: Peak) -> int:
    """Return how many blocks an SM holds at the same time, by registers, shared memory, warps and blocks."""
    a_warp = tile_up(facts.registers * 32, 256)  # registers are given out to a warp in pieces of 256
    by_registers = 4 * (peak.registers // 4 // a_warp) // warps  # each of four schedulers has a quarter of them
    by_shared = peak.shared // (facts.shared + peak.reserved) if facts.shared + peak.reserved else peak.blocks
    return min(by_registers, by_shared, peak.warps // warps, peak.blocks)


def tile_up(size: int, tile: int) -> int:
    """Return ``size`` rounded up to a multiple of ``tile``."""
    return -(-size // tile) * tile


def waves(launch: Launch, blocks: int, peak: Peak) -> float:
    """Return how often the launch fills the device."""
    return launch.programs / (peak.sms * blocks)


def unevenness(launch: Launch, peak: Peak) -> float:
    """Return the share of work of the busiest SM over an even share: programs are whole."""
    return tile_up(launch.programs, peak.sms) / launch.programs


def pipe_seconds(launch: Launch, peak: Peak) -> dict[str, float]:
    """Return the seconds that each pipe needs at its peak rate for all launches of a call.

    Pipes of an SM, its port to L2 among them, take the time of the busiest one.
    """
    work, times = launch.work, launch.times
    busiest = unevenness(launch, peak) / peak.sms / peak.clock
    return {
        "HBM": times * work.hbm / peak.hbm,
        "L2": times * max(work.l2 / peak.l2 / peak.clock, work.l2 / peak.l2_port * busiest),
        "tensor": times * work.tensor / peak.tensor * busiest,
        "exp": times * work.exp / peak.exp * busiest,
        "ALU": times * work.alu / peak.alu * busiest,
    }
