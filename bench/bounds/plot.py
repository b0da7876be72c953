"""Bars of each pipe's time, a group a kernel, as shares of the kernel's bound."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bench.bounds.bound import Bound
from bench.bounds.model import PIPES

_COLOURS = dict(zip(PIPES, ("#4477aa", "#66ccee", "#228833", "#ee6677", "#ccbb44"), strict=True))
_ROW = 0.62  # inches a kernel


def draw(bounds: Sequence[Bound], path: Path) -> None:
    """Draw the kernels at one batch size, the middle one of those given."""
    sizes = sorted({bound.launch.B for bound in bounds})
    B = sizes[len(sizes) // 2]
    shown = [bound for bound in bounds if bound.launch.B == B]
    figure = Figure(figsize=(10, 1.2 + _ROW * len(shown)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(PIPES)
    for i, pipe in enumerate(PIPES):
        places = [place + (i - (len(PIPES) - 1) / 2) * height for place in range(len(shown))]
        values = [max(1e6 * bound.seconds[pipe], 1e-3) for bound in shown]
        axes.barh(places, values, height, color=_COLOURS[pipe], label=pipe)
    for place, bound in enumerate(shown):
        axes.plot([1e6 * bound.bound] * 2, [place - 0.45, place + 0.45], color="black", lw=1.5)
    labels = [f"{b.launch.op}: {b.launch.kernel}, {b.launch.shape}" for b in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(left=0.1)
    axes.set_xlabel("µs at the peak rate of each pipe; the black line is the bound (arithmetic, not measured)")
    axes.set_title(f"{bounds[0].device}, B={B}", loc="left")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, title="pipe")
    figure.savefig(path, dpi=110)
