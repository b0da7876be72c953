"""Plots of a benchmark run: one sheet per op and direction (time, share of the ceilings, memory), and one roofline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.results_io import Result, Run

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#222255")
_COLOURS += ("#ee8866", "#44bb99")
_CEILING_COLOURS = {"copy bandwidth": "#88ccee", "matmul rate": "#ddaa33"}
_MARKERS = "osD^vP*X"
_DASHES = ("-", "--", ":", "-.")
_ROW = 0.23  # inches
_TOP, _BOTTOM, _RIGHT, _LETTER = 0.72, 0.62, 0.2, 0.088  # inches around the panels, and of a letter of a label


def draw_run(run: Run, folder: Path) -> list[Path]:
    """Write the PNG files of ``run`` into ``folder``; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sheets: dict[tuple[str, str], list[Result]] = {}
    for result in run.results:
        sheets.setdefault((result.op, result.direction), []).append(result)
    paths = [_sheet(run, *key, results, folder) for key, results in sheets.items()]
    rooflined = [r for r in run.results if r.flops and r.bytes and r.rate_dtype in run.ceilings.matmul_rate]
    if rooflined:
        paths.append(_roofline(run, rooflined, folder))
    return paths


@dataclass(frozen=True)
class Row:
    """A line of a sheet: a bar, or the heading of the bars below it where ``result`` is None."""

    label: str
    result: Result | None
    place: float


def sheet_rows(results: Sequence[Result]) -> list[Row]:
    """Return the rows of a sheet, with what is compared together.

    Those are contenders of one shape and, unless the baseline binds the dtype, of one dtype.
    """
    groups: dict[str, list[tuple[str, Result]]] = {}
    for r in results:
        binds = r.baseline.rpartition(" ")[2] in {other.dtype for other in results}
        heading, label = (r.shape, f"{r.contender} {r.dtype}") if binds else (f"{r.shape}, {r.dtype}", r.contender)
        groups.setdefault(heading, []).append((label, r))
    rows: list[Row] = []
    place = 0.0
    for heading, bars in groups.items():
        rows.append(Row(heading, None, place))
        rows += [Row(label, result, place + 1 + i) for i, (label, result) in enumerate(bars)]
        place += len(bars) + 1.5
    return rows


def _sheet(run: Run, op: str, direction: str, results: Sequence[Result], folder: Path) -> Path:
    rows = sheet_rows(results)
    bars = [(row.place, row.result) for row in rows if row.result is not None]
    contenders = list(dict.fromkeys(r.contender for r in results))
    colours = [_COLOURS[contenders.index(r.contender) % len(_COLOURS)] for _, r in bars]
    with_memory = any(r.peak_bytes for r in results)
    with_shares = any(r.copy is not None or r.matmul is not None for r in results)
    panels = 1 + with_shares + with_memory
    left = 0.3 + _LETTER * max(len(row.label) for row in rows)
    width = left + 3.7 * panels + _RIGHT
    height = _TOP + _BOTTOM + _ROW * (rows[-1].place + 1.6)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left / width, _BOTTOM / height, 1 - _RIGHT / width, 1 - _TOP / height, wspace=0.08)
    _times(axes[0], bars, colours)
    if with_shares:
        _shares(axes[1], bars)
    if with_memory:
        _memory(axes[-1], bars, colours)
    axes[0].set_yticks([row.place for row in rows], [row.label for row in rows], fontsize=9)
    for tick, row in zip(axes[0].get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.result is None else "normal")
    axes[0].set_ylim(rows[-1].place + 0.8, -0.8)
    for axis in axes:
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    where = run.ceilings.device + (f", {run.ceilings.threads} threads" if run.environment["device"] == "cpu" else "")
    figure.text(0.15 / width, 1 - 0.3 / height, f"{op}, {direction}: {where}", fontsize=11, fontweight="bold")
    path = folder / f"{op}_{direction.replace('+', '_')}.png"
    figure.savefig(path, dpi=110)
    return path


def _times(axis: Axes, bars: Sequence[tuple[float, Result]], colours: Sequence[str]) -> None:
    places, results = zip(*bars, strict=True)
    unit, scale = ("ms", 1e3) if max(r.median for r in results) >= 1e-3 else ("µs", 1e6)
    q20, median, q80 = scale * np.array([(r.q20, r.median, r.q80) for r in results]).T
    error = np.maximum(0.0, [median - q20, q80 - median])
    drawn = axis.barh(places, median, color=colours, xerr=error, error_kw={"lw": 1})
    texts = [_duration(r.median) + ("" if r.faster is None else f"  ({r.faster:.2f}x)") for r in results]
    axis.bar_label(drawn, texts, padding=5, fontsize=7)
    _stretch(axis, np.maximum(median, q80), room=0.45)
    baselines = ", ".join(dict.fromkeys(r.baseline for r in results))
    axis.set_xlabel(f"{unit} a call (times faster than {baselines})", fontsize=9)


def _shares(axis: Axes, bars: Sequence[tuple[float, Result]]) -> None:
    shares = {"copy bandwidth": [r.copy for _, r in bars], "matmul rate": [r.matmul for _, r in bars]}
    shares = {name: values for name, values in shares.items() if any(v is not None for v in values)}
    height = 0.8 / len(shares)
    for i, (name, values) in enumerate(shares.items()):
        middles = [place + (i - (len(shares) - 1) / 2) * height for place, _ in bars]
        axis.barh(middles, [100 * (v or 0) for v in values], height, color=_CEILING_COLOURS[name], label=name)
    axis.set_xlim(0, max(100.0, axis.get_xlim()[1]))
    axis.set_xlabel("% of the ceiling measured in this run", fontsize=9)
    axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.1)


def _memory(axis: Axes, bars: Sequence[tuple[float, Result]], colours: Sequence[str]) -> None:
    known = [(place, r.peak_bytes / 1e6, colour) for (place, r), colour in zip(bars, colours, strict=True)
             if r.peak_bytes]  # fmt: skip
    places, megabytes, colours = zip(*known, strict=True)
    axis.bar_label(axis.barh(places, megabytes, color=colours), fmt="{:,.1f}", padding=5, fontsize=7)
    _stretch(axis, megabytes, room=0.3)
    axis.set_xlabel("peak MB beyond what was held before", fontsize=9)


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} µs"


def _stretch(axis: Axes, values: Sequence[float], room: float) -> None:
    """Limits that leave ``room`` (a share of the panel) for the text beside the longest bar; logarithmic if need be."""
    low, high = min(values), max(values)
    if high <= 20 * low:
        axis.set_xlim(0, high / (1 - room))
        return
    axis.set_xscale("log")
    start, room = low / 3, 0.7 * room
    axis.set_xlim(start, start * (high / start) ** (1 / (1 - room)))
    _plain_numbers(axis.xaxis)


def _plain_numbers(axis: Axis) -> None:
    """1,000 instead of 10^3; where there are few powers of ten, twice and five times them too."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(10, (1.0,) if high > 300 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _roofline(run: Run, results: Sequence[Result], folder: Path) -> Path:
    intensities = [r.flops / r.bytes for r in results]
    x = np.geomspace(min(intensities) / 3, max(intensities) * 3, 200)
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axis = figure.subplots()
    unit, scale = ("TFLOP/s", 1e12) if max(run.ceilings.matmul_rate.values()) > 2e12 else ("GFLOP/s", 1e9)
    dtypes = sorted({r.rate_dtype for r in results})
    for i, dtype in enumerate(dtypes):
        roof = np.minimum(x * run.ceilings.copy_bandwidth, run.ceilings.matmul_rate[dtype]) / scale
        # Roofs that lie on each other are told apart by their dashes.
        axis.plot(x, roof, color=_COLOURS[i], lw=2, ls=_DASHES[i % len(_DASHES)], label=f"ceilings, {dtype}")
    # Of each group the last one stays.
    fastest = {(r.group, r.dtype): r.median for r in sorted(results, key=lambda r: r.median, reverse=True)}
    ops = list(dict.fromkeys((r.op, r.direction) for r in results))
    for r in results:
        best = r.median == fastest[r.group, r.dtype]
        colour = _COLOURS[dtypes.index(r.rate_dtype)]
        look = {"s": 45, "alpha": 1.0, "zorder": 3} if best else {"s": 14, "alpha": 0.6, "zorder": 2}
        look |= {"facecolor": colour if best else "none", "edgecolor": colour}
        marker = _MARKERS[ops.index((r.op, r.direction)) % len(_MARKERS)]
        axis.scatter(r.flops / r.bytes, r.flops / r.median / scale, marker=marker, **look)
    for i, (op, direction) in enumerate(ops):
        axis.scatter([], [], marker=_MARKERS[i % len(_MARKERS)], color="#555555", s=45, label=f"{op}, {direction}")
    axis.scatter([], [], marker="o", facecolor="none", edgecolor="#555555", s=14, label="(small, hollow: slower ones)")
    axis.loglog()
    axis.set(xlabel="FLOP a byte, least possible work", ylabel=f"{unit}, least possible work")
    _plain_numbers(axis.xaxis)
    _plain_numbers(axis.yaxis)
    axis.grid(alpha=0.3, which="both")
    figure.legend(*axis.get_legend_handles_labels(), fontsize=8, loc="outside right upper", frameon=False)
    axis.set_title(f"Every contender under the ceilings of {run.ceilings.device}", fontsize=11, fontweight="bold")
    path = folder / "roofline.png"
    figure.savefig(path, dpi=110)
    return path
