"""Who won, by how much: of each thing that was measured our best against the best of the others; and two plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from bench.results_io import Result

_OURS = {
    *("triton", "cuda", "cpu", "sdpa", "gemm", "gemm medium", "triton medium", "collapsed", "prepared"),
    *("fused", "fused, hidden layer kept"),
}
TITLES = {
    "patch_attention": "attention", "patch_contrastive_loss": "contrastive loss", "pixelshuffle_tail": "tail",
    "layernorm_linear": "LayerNorm, linear", "ffn": "feed-forward", "degrade": "degradation", "model": "network",
    "restore": "restoring", "row_contrastive_loss": "losses over rows",
}  # fmt: skip
_TICKS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100)
_WON, _LEVEL, _LOST = "#228833", "#999999", "#ee6677"


@dataclass(frozen=True)
class Verdict:
    """Our best and the best of the others at one shape. ``factor``: how many times faster ours is."""

    what: str
    ours: Result
    other: Result

    @property
    def factor(self) -> float:
        return self.other.median / self.ours.median

    @property
    def level(self) -> bool:
        """Whether the middle 60 % of the rounds overlap."""
        return self.ours.q20 <= self.other.q80 and self.other.q20 <= self.ours.q80

    def row(self) -> tuple[str, ...]:
        """Return the cells under ``COLUMNS``."""
        if self.level:
            won = f"level ({self.factor:.2f}x)"
        else:
            won = f"**ours, {self.factor:.2f}x**" if self.factor > 1 else f"other, by {1 / self.factor:.2f}x"
        ours, other = (f"{r.contender}, {r.median * 1e3:,.4g} ms" for r in (self.ours, self.other))
        return self.what, self.ours.dtype, ours, other, won


COLUMNS = ("what", "dtype", "ours", "best other", "who won, by how much")


def is_ours(contender: str) -> bool:
    """Return whether a contender of a benchmark is this project's."""
    return contender in _OURS or contender.startswith(("ipt_fast", "blend"))


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """Return one for each op, direction, shape and dtype that both sides were measured at.

    Where the others have no result in that dtype, theirs in any dtype count.
    """
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    found = []
    for (op, direction, shape), members in groups.items():
        others = [r for r in members if not is_ours(r.contender)]
        for dtype in dict.fromkeys(r.dtype for r in members if is_ours(r.contender)):
            rivals = [r for r in others if r.dtype == dtype] or others
            if not rivals:
                continue
            ours = min((r for r in members if is_ours(r.contender) and r.dtype == dtype), key=lambda r: r.median)
            what = f"{TITLES.get(op, op)}, {direction.replace('+', ' and ')}, {shape}"
            found.append(Verdict(what, ours, min(rivals, key=lambda r: r.median)))
    return found


def in_short(found: Sequence[Verdict]) -> str:
    """Return the count in a sentence, and the worst loss."""
    won = [v for v in found if v.factor > 1 and not v.level]
    lost = [v for v in found if v.factor < 1 and not v.level]
    line = f"of {len(found)} comparisons ours won {len(won)}, lost {len(lost)}"
    line += f"; {len(found) - len(won) - len(lost)} are level"
    if lost:
        worst = min(lost, key=lambda v: v.factor)
        line += f". The widest loss: {worst.what}, {worst.ours.dtype}, {1 / worst.factor:.2f}x behind "
        line += worst.other.contender
    return line


def draw_verdicts(found: Sequence[Verdict], path: Path) -> None:
    """Draw a bar for each: to the right of 1 ours is faster, to the left the best of the others."""
    height = 0.9 + 0.26 * len(found)
    figure = Figure(figsize=(11, height))
    axis = figure.subplots()
    figure.subplots_adjust(left=0.46, right=0.93, top=1 - 0.45 / height, bottom=0.4 / height)
    factors = [v.factor for v in found]
    colours = [_LEVEL if v.level else _WON if v.factor > 1 else _LOST for v in found]
    axis.barh(range(len(found)), [f - 1 for f in factors], left=1, color=colours)
    for place, v in enumerate(found):
        end = max(v.factor, 1.0)
        axis.text(end * 1.02, place, f"{v.factor:.2f}x {v.other.contender}", fontsize=7, va="center")
    axis.set_xscale("log")
    axis.set_xlim(min(0.5, *factors) / 1.1, max(2.0, *factors) * 2.2)
    axis.xaxis.set_major_locator(FixedLocator(_TICKS))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.axvline(1, color="black", lw=1)
    axis.set_yticks(range(len(found)), [f"{v.what}, {v.ours.dtype}" for v in found], fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_title("Times faster than the best other (green ours, grey level, red the other)", fontsize=10, loc="right")
    figure.savefig(path, dpi=110)


def draw_throughput(values: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw patches a second by batch size, a bar for each contender."""
    contenders = list(dict.fromkeys(v["contender"] for v in values))
    sizes = sorted({v["B"] for v in values})
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    colours = ("#228833", "#4477aa", "#66ccee", "#ee6677", "#aa3377")
    width = 0.8 / len(contenders)
    for i, contender in enumerate(contenders):
        rates = {v["B"]: v["patches_per_s"] for v in values if v["contender"] == contender}
        places = [sizes.index(B) + (i - (len(contenders) - 1) / 2) * width for B in rates]
        bars = axis.bar(places, list(rates.values()), width, label=contender, color=colours[i % len(colours)])
        axis.bar_label(bars, fmt="{:,.0f}", fontsize=7)
    axis.set_xticks(range(len(sizes)), [f"B={B:g}" for B in sizes])
    axis.set_ylabel("patches a second")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
