"""What a kernel is bound by on a device, and how that is printed."""

from dataclasses import dataclass

from bench.bounds.launch import Launch
from bench.bounds.model import PIPES, resident_blocks, waves
from bench.count.rates import DEVICES, PEAKS
from bench.ptx_facts import PtxFacts


@dataclass(frozen=True)
class Bound:
    """A launch on a device: the seconds of each pipe, what it was compiled to, what was measured."""

    launch: Launch
    device: str
    facts: PtxFacts
    seconds: dict[str, float]
    measured: float | None

    @property
    def limit(self) -> str:
        """The pipe that takes longest; "launch" where starting the kernel does."""
        pipe = max(self.seconds, key=lambda name: self.seconds[name])
        return pipe if self.seconds[pipe] > self.started else "launch"

    @property
    def started(self) -> float:
        """Seconds that its launches take however little they do."""
        return DEVICES[self.device].launch * self.launch.times

    @property
    def bound(self) -> float:
        """Seconds that no schedule can beat."""
        return max(self.started, *self.seconds.values())

    def row(self) -> tuple[str, ...]:
        """Return the cells of ``COLUMNS``."""
        a, peak = self.launch, PEAKS[self.device]
        blocks = resident_blocks(self.facts, a.warps, peak)
        pipes = [micro(self.seconds[name]) for name in PIPES]
        name = a.kernel + (f" ({a.times} launches)" if a.times > 1 else "")
        found = "not measured" if self.measured is None else micro(self.measured)
        fits = f"{blocks * a.warps} ({blocks} x {a.warps})"
        return (
            f"{a.op}: {name}", a.shape, str(a.B), str(self.facts.registers), f"{self.facts.shared:,}", fits,
            f"{waves(a, blocks, peak):.2f}", *pipes, self.limit, micro(self.bound),
            micro(max(self.started, sum(self.seconds.values()))), found,
        )  # fmt: skip


def micro(seconds: float) -> str:
    """Return microseconds in three digits."""
    return f"{1e6 * seconds:,.0f}" if seconds >= 1e-4 else f"{1e6 * seconds:.3g}"
