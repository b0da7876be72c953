"""How many crops a second and a CPU-second do the loaders give, against a plain DataLoader with Pillow?

``ipt-fast bench --only data`` times some batches of each loader. CPU time, on which the goals are set, is measured by

    python -m bench.bench_data --data photos/train

CPU time is that of the process and its workers, user and system, and so counts what a training would have to give up.
Rounds of the contenders take turns. The row "six tasks" is what pre-training draws: each task in a sixth of the
batches, three of them with 48 x 48 crops, super-resolution with the larger ones that exact bicubic needs.
"""

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from bench.baselines.pillow_loader import pillow_batches
from bench.case import Work
from bench.ceilings import device_name
from bench.results_io import environment
from ipt_fast.cli.tables import markdown_table, print_table
from ipt_fast.data import ImageIndex, build_index, make_loader
from ipt_fast.data.dali import unavailable_reason
from ipt_fast.data.plan import crop_spec
from ipt_fast.tasks import TASKS

BASELINE = "DataLoader + Pillow"
CONTENDERS = (BASELINE, "torch loader", "DALI loader")
# Crops of one decode, beyond the contest: the plain loader has no such thing.
SEVERAL = 4
GOALS = {"torch loader": 1.25, "DALI loader": 2.4}
BATCH = 64
COLUMNS = ("crop", "loader", "crops/s", "crops/CPU-s", "20..80 %", "faster", "per CPU-s", "CPU µs a crop")
MIX = "six tasks"


def cpu_seconds() -> float:
    """User and system time of this process and its children, the dead ones too."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may end between being listed and being asked
            spent = child.cpu_times()
            total += spent.user + spent.system
    return total


@contextmanager
def batches(contender: str, index: ImageIndex, task: str, workers: int, crops: int = 1) -> Iterator[Iterator[Any]]:
    """Endless batches of one contender; its workers end with the context."""
    if contender == BASELINE:
        paths = [entry.path for entry in index.usable]
        with closing(pillow_batches(paths, crop_spec(task, 48).size, BATCH, workers)) as stream:
            yield stream
        return
    kind = contender.split()[0].lower()
    options = {"tasks": (task,), "batch_size": BATCH, "workers": workers, "crops_per_image": crops, "device": "cpu"}
    with closing(make_loader(index, loader=kind, **options)) as loader:
        yield loader


# ---- in the suite: wall time of some batches (a single one may be there at once, or take twice the mean)

_BATCHES = 8


def _photos() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared/data/imagenet-sample/train"
    return Path(os.environ.get("IPT_FAST_BENCH_PHOTOS", default))


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ImageIndex:
    if not _photos().is_dir():
        pytest.skip(f"no photos at {_photos()}; set IPT_FAST_BENCH_PHOTOS to a folder of them")
    return build_index(_photos(), index_file=tmp_path_factory.mktemp("index") / "index.jsonl", progress=False)


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("task", ["denoise30", "sr4"])
def bench_loader(measure, index, small, contender, task):
    if contender == "DALI loader" and unavailable_reason():
        pytest.skip(str(unavailable_reason()))
    size = crop_spec(task, 48).size
    with batches(contender, index, task, workers=2) as stream:
        for _ in range(6):
            next(stream)
        call, work = lambda: [next(stream) for _ in range(_BATCHES)], Work(bytes=_BATCHES * BATCH * 3 * size * size)
        shape = f"{_BATCHES} batches of {BATCH} crops {size}x{size}, {len(index.usable)} photos"
        measure(call, "data", contender, shape, "uint8", work, baseline=BASELINE, memory=False, capture=False)


# ---- alone: CPU time too


@dataclass
class Rate:
    """Crops a second of wall and of CPU time: medians over the rounds, with 20 % and 80 % quantiles of the latter."""

    crop: str
    loader: str
    wall: float
    cpu: float
    cpu_low: float
    cpu_high: float
    faster: float
    faster_cpu: float

    def row(self) -> tuple[str, ...]:
        spread, factors = f"{self.cpu_low:,.0f}..{self.cpu_high:,.0f}", (self.faster, self.faster_cpu)
        wall, cpu, each = (f"{rate:,.0f}" for rate in (self.wall, self.cpu, 1e6 / self.cpu))
        return self.crop, self.loader, wall, cpu, spread, *(f"{factor:.2f}x" for factor in factors), each


def one_round(contender: str, index: ImageIndex, task: str, workers: int, count: int, crops: int) -> list[float]:
    """[crops a second, crops a CPU-second] over ``count`` crops, once the loader runs."""
    with batches(contender, index, task, workers, crops) as stream:
        for _ in range(2 * workers + 2):
            next(stream)
        cpu, wall = cpu_seconds(), time.perf_counter()
        for _ in range(count // BATCH):
            next(stream)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return [count // BATCH * BATCH / seconds for seconds in (wall, cpu)]


def measure_rates(index: ImageIndex, workers: int, rounds: int, count: int) -> list[Rate]:
    """All contenders at all crop sizes, and what six tasks in turn make of them."""
    contenders = [(name, 1) for name in CONTENDERS if name != "DALI loader" or not unavailable_reason()]
    contenders += [(name, SEVERAL) for name, _ in contenders[1:]]
    sizes = {task: crop_spec(task, 48).size for task in TASKS}
    seen: dict[tuple[str, str], Any] = {}  # (crop, loader) -> [rounds, 2]
    for _ in range(rounds):
        for size, task in {size: task for task, size in sizes.items()}.items():
            for name, crops in contenders:
                label = name if crops == 1 else f"{name}, {crops} crops a decode"
                result = one_round(name, index, task, workers, count, crops)
                seen.setdefault((f"{size}x{size}", label), []).append(result)
    labels = list(dict.fromkeys(label for _, label in seen))
    for label in labels:  # a batch of each task in turn takes the sum of their times
        seen[MIX, label] = len(TASKS) / sum(1 / np.array(seen[f"{size}x{size}", label]) for size in sizes.values())
    rates: list[Rate] = []
    for crop in (MIX, *(f"{size}x{size}" for size in sorted(set(sizes.values())))):
        for label in labels:
            walls, cpus = np.array(seen[crop, label]).T
            wall, cpu, low, high = (float(x) for x in (np.median(walls), *np.quantile(cpus, (0.5, 0.2, 0.8))))
            base = next((b for b in rates if (b.crop, b.loader) == (crop, BASELINE)), None)
            faster = (1.0, 1.0) if base is None else (wall / base.wall, cpu / base.cpu)
            rates.append(Rate(crop, label, wall, cpu, low, high, *faster))
    return rates


def draw(rates: Sequence[Rate], where: str, path: Path) -> None:
    """Bars of crops a CPU-second, the goals as lines across them."""
    from matplotlib.figure import Figure

    crops = list(dict.fromkeys(rate.crop for rate in rates))
    labels = list(dict.fromkeys(rate.loader for rate in rates))
    colours = ("#999999", "#4477aa", "#228833", "#aac4dd", "#99cc99")
    figure = Figure(figsize=(10.5, 5), layout="constrained")
    axis = figure.subplots()
    width = 0.84 / len(labels)
    for i, label in enumerate(labels):
        own = [r for r in rates if r.loader == label]  # in the order of the crops
        places = [n - 0.42 + (i + 0.5) * width for n in range(len(crops))]
        errors = [[r.cpu - r.cpu_low for r in own], [r.cpu_high - r.cpu for r in own]]
        look = {"label": label, "color": colours[i], "yerr": errors, "ecolor": "#333333"}
        axis.bar(places, [r.cpu for r in own], width * 0.94, **look)
        for place, r in zip(places, own, strict=True):
            if r.loader != BASELINE:
                above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                axis.annotate(f"{r.faster_cpu:.1f}x", (place, r.cpu_high), **above)
    axis.set_xticks(range(len(crops)), [crop if crop == MIX else f"crops of {crop}" for crop in crops])
    axis.set_ylabel("crops a CPU-second (higher is better)")
    axis.set_title(f"Loading training crops from JPEGs: {where}", loc="left", fontsize=11, fontweight="bold")
    axis.legend(frameon=False, fontsize=9, ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.margins(y=0.18)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_data", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=_photos(), help="a folder of photos")
    parser.add_argument("--workers", type=int, default=2, help="processes (torch) or threads (DALI)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crops", type=int, default=1600, help="crops a round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/cpu/data")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    index = build_index(args.data, index_file=args.out / ".index.jsonl", progress=False)
    (args.out / ".index.jsonl").unlink()
    if unavailable_reason():
        print(f"the DALI loader is not measured: {unavailable_reason()}")
    rates = measure_rates(index, args.workers, args.rounds, args.crops)
    photos = index.usable
    kilobytes = round(sum(e.size_bytes for e in photos) / len(photos) / 1e3)
    megapixels = round(sum(e.width * e.height for e in photos) / len(photos) / 1e6, 2)
    description = {"photos": len(photos), "mean kB": kilobytes, "mean megapixels": megapixels}
    description |= {"workers": args.workers, "batch": BATCH, "rounds": args.rounds, "crops a round": args.crops}
    description |= environment(torch.device("cpu"))
    where = f"{device_name(torch.device('cpu'))}, {args.workers} workers"
    print_table(f"{where}, {len(photos)} photos", COLUMNS, [rate.row() for rate in rates], COLUMNS[2:])
    for name, goal in GOALS.items():
        found = next((r for r in rates if (r.crop, r.loader) == (MIX, name)), None)
        if found:
            print(f"{name}: {found.faster_cpu:.2f} times as many crops a CPU-second, the goal is {goal}")
    told = ", ".join(f"{key} {value}" for key, value in description.items())
    table = markdown_table(COLUMNS, [rate.row() for rate in rates], COLUMNS[2:])
    (args.out / "data.md").write_text(f"# Loading: {where}\n\n{told}.\n\n{table}")
    content = {"environment": description, "results": [asdict(rate) for rate in rates]}
    (args.out / "data.json").write_text(json.dumps(content, indent=1) + "\n")
    with (args.out / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rates[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(rate) for rate in rates)
    draw(rates, f"{len(photos)} photos, {where}", args.out / "data.png")
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
