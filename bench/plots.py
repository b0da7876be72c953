"""Plots of a benchmark run: one sheet per op and direction (time, share of the ceilings, memory), and one roofline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import Result, Run

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255")
_MARKERS = "osD^vP*X"


def draw_run(run: Run, folder: Path) -> list[Path]:
    """Write the PNG files of ``run`` into ``folder``; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in run.results:
        groups.setdefault((result.op, result.direction), []).append(result)
    paths = [_sheet(run, *key, results, folder) for key, results in groups.items()]
    rooflined = [r for r in run.results if r.flops and r.bytes and r.dtype in run.ceilings.matmul_rate]
    if rooflined:
        paths.append(_roofline(run, rooflined, folder))
    return paths


def _sheet(run: Run, op: str, direction: str, results: Sequence[Result], folder: Path) -> Path:
    import matplotlib.pyplot as plt

    contenders = list(dict.fromkeys(r.contender for r in results))
    colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(contenders)}
    with_memory = any(r.peak_bytes for r in results)
    with_shares = any(r.copy is not None or r.matmul is not None for r in results)
    panels = 1 + with_shares + with_memory
    figure, axes = plt.subplots(
        1, panels, figsize=(3.2 + 3.6 * panels, 1.8 + 0.24 * len(results)), sharey=True, squeeze=False
    )
    places = _places(results)
    _bars(axes[0][0], results, places, [colour[r.contender] for r in results])
    if with_shares:
        _shares(axes[0][1], results, places)
    if with_memory:
        _memory(axes[0][-1], results, places, [colour[r.contender] for r in results])
    axes[0][0].set_yticks(places, [f"{r.shape}   {r.contender} {r.dtype}" for r in results])
    axes[0][0].invert_yaxis()
    for axis in axes[0]:
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{op}, {direction} on {run.ceilings.device}, {run.ceilings.threads} threads", fontsize=11)
    figure.tight_layout()
    path = folder / f"{op}_{direction.replace('+', '_')}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _places(results: Sequence[Result]) -> list[float]:
    # A gap between shapes.
    places, place = [], 0.0
    for i, result in enumerate(results):
        place += 0 if i == 0 else 1 if result.shape == results[i - 1].shape else 1.7
        places.append(place)
    return places


def _bars(axis: Any, results: Sequence[Result], places: list[float], colours: list[str]) -> None:
    times = [r.median * 1e3 for r in results]
    below = [max(0.0, (r.median - r.q20) * 1e3) for r in results]
    above = [max(0.0, (r.q80 - r.median) * 1e3) for r in results]
    axis.barh(places, times, color=colours, xerr=(below, above), error_kw={"lw": 1})
    if max(times) > 20 * min(times):
        axis.set_xscale("log")
    for place, result, time, more in zip(places, results, times, above, strict=True):
        text = f"{time:.3g}" + ("" if result.faster is None else f"  ({result.faster:.2f}x)")
        axis.annotate(text, (time + more, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7)
    axis.margins(x=0.3)
    baseline = results[0].baseline
    axis.set_xlabel(f"ms a call (times faster than {baseline})")


def _shares(axis: Any, results: Sequence[Result], places: list[float]) -> None:
    shares = {
        "copy bandwidth": ("#88ccee", [r.copy for r in results]),
        "matmul rate": ("#ddaa33", [r.matmul for r in results]),
    }
    shares = {name: (colour, values) for name, (colour, values) in shares.items() if any(v is not None for v in values)}
    height = 0.8 / len(shares)
    for i, (name, (colour, values)) in enumerate(shares.items()):
        middles = [p + (i - (len(shares) - 1) / 2) * height for p in places]
        axis.barh(middles, [100 * (v or 0) for v in values], height, color=colour, label=name)
    axis.set_xlabel("% of the ceiling measured in this run")
    axis.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)


def _memory(axis: Any, results: Sequence[Result], places: list[float], colours: list[str]) -> None:
    axis.barh(places, [(r.peak_bytes or 0) / 1e6 for r in results], color=colours)
    for place, result in zip(places, results, strict=True):
        if result.peak_bytes is not None:
            text = f"{result.peak_bytes / 1e6:,.1f}"
            at = (result.peak_bytes / 1e6, place)
            axis.annotate(text, at, xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
    axis.margins(x=0.2)
    axis.set_xlabel("peak MB beyond what was held before")


def _roofline(run: Run, results: Sequence[Result], folder: Path) -> Path:
    import matplotlib.pyplot as plt
    import numpy as np

    intensities = [r.flops / r.bytes for r in results]
    x = np.geomspace(min(intensities) / 4, max(intensities) * 4, 200)
    figure, axis = plt.subplots(figsize=(8, 5.2))
    dtypes = sorted({r.dtype for r in results})
    for i, dtype in enumerate(dtypes):
        roof = np.minimum(x * run.ceilings.copy_bandwidth, run.ceilings.matmul_rate[dtype]) / 1e9
        axis.plot(x, roof, color=_COLOURS[i], label=f"ceilings, {dtype}")
    ops = list(dict.fromkeys((r.op, r.direction) for r in results))
    for i, (op, direction) in enumerate(ops):
        for j, dtype in enumerate(dtypes):
            chosen = [r for r in results if (r.op, r.direction, r.dtype) == (op, direction, dtype)]
            axis.scatter(
                [r.flops / r.bytes for r in chosen],
                [r.flops / r.median / 1e9 for r in chosen],
                marker=_MARKERS[i % len(_MARKERS)],
                facecolor="none",
                edgecolor=_COLOURS[j],
                label=f"{op}, {direction}" if j == 0 else None,
            )
    axis.set(xscale="log", yscale="log", xlabel="FLOP a byte, least possible", ylabel="GFLOP/s, least possible work")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=7, loc="lower right")
    axis.set_title(f"Every contender under the ceilings of {run.ceilings.device}", fontsize=11)
    figure.tight_layout()
    path = folder / "roofline.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
