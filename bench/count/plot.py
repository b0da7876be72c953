"""A panel a device, a bar a batch size: the estimated milliseconds of a step by kind, and the host's beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee8866",
    "#222255",
    "#44bb99",
    "#bbbbbb",
)
_SMALL = 0.02  # kinds under this share of every bar are one


def draw(bars: Sequence[tuple[str, str, Mapping[str, float], float]], path: Path) -> None:
    """Draw ``bars``: device, label, seconds by kind, seconds of the host; a panel a device, on its own scale."""
    totals: dict[str, float] = {}
    for *_, kinds, _ in bars:
        for kind, seconds in kinds.items():
            totals[kind] = max(totals.get(kind, 0.0), seconds / sum(kinds.values()))
    shown = [kind for kind in sorted(totals, key=lambda k: -totals[k]) if totals[kind] >= _SMALL and kind != "other"][
        :9
    ]
    devices = list(dict.fromkeys(device for device, *_ in bars))
    figure = Figure(figsize=(9, 0.9 + 0.8 * len(devices) + 0.35 * len(bars)), layout="constrained")
    panels = figure.subplots(len(devices), squeeze=False)[:, 0]
    for axes, device in zip(panels, devices, strict=True):
        _draw_device(axes, [bar[1:] for bar in bars if bar[0] == device], shown)
        axes.set_title(device, loc="left")
    panels[-1].set_xlabel("milliseconds of a training step, estimated")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=110)


def _draw_device(axes: Axes, bars: Sequence[tuple[str, Mapping[str, float], float]], shown: Sequence[str]) -> None:
    for place, (_, kinds, host) in enumerate(bars):
        rest = sum(seconds for kind, seconds in kinds.items() if kind not in shown)
        left, parts = 0.0, [*((kind, kinds.get(kind, 0.0)) for kind in shown), ("other", rest)]
        for colour, (kind, seconds) in zip(_COLOURS, parts, strict=False):
            label = kind if place == 0 else None
            axes.barh(place, 1e3 * seconds, left=1e3 * left, color=colour, height=0.62, label=label)
            left += seconds
        label = "host, one launch\nafter the other" if place == 0 else None
        axes.plot([1e3 * host] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2, label=label)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
