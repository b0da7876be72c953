"""How much faster is restoring a photo than by the official procedure, and what does that cost in quality?

The official procedure: 48x48 windows at a quarter of their side, float32, the network written plainly. Ours: the same
network in few windows that fade into each other, in bfloat16 where the processor has it.

``ipt-fast bench --only restore`` times both on a crop. The figures on a whole photo, and the quality of a checkpoint:

    python -m bench.bench_restore --photo photo.png
    python -m bench.bench_restore --photo photos/*.png --checkpoint runs/tiny/checkpoint.pt --tasks sr2 denoise50
    python -m bench.bench_restore --photo photo.png --only outside --presets base pocket

The whole photo takes the official procedure several minutes, so its time is that of some windows, in batches of eight
between runs of ours, times their number; ours is timed whole.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.baselines.plain_ipt import plain_copy
from bench.case import Work, seconds_of
from bench.ceilings import device_name
from ipt_fast import load_checkpoint, restore
from ipt_fast.cli._network import pick_precision
from ipt_fast.cli.tables import print_table
from ipt_fast.evaluation.metrics import psnr_y, scored_border
from ipt_fast.inference import prepare_for_inference
from ipt_fast.io.images import read_rgb
from ipt_fast.model import IPT, PRESETS
from ipt_fast.ops import degrade
from ipt_fast.tasks import get_task
from ipt_fast.tiling.windows import tiling

SIZE = 48
_TASK = "denoise50"
_BATCH = 16
_SAMPLE = 8  # windows of the official procedure that are timed at once


# In the suite: the same crop by each way, whole.


@pytest.mark.parametrize("contender", ["official", "blend 10 px", "blend 4 px"])
def bench_restore(measure, device, small, contender):
    """Restore a crop of 144x144 (96x96 if small): 81 windows of the official grid, or 16 and 16 of ours."""
    preset = "tiny" if small or device.type == "cpu" else "base"
    side = 96 if small else 144
    model = IPT(PRESETS[preset]).eval().to(device)
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    if contender == "official":
        # The released code's way of calling attention: its probabilities are made.
        network, dtype, options = plain_copy(model, need_weights=True), torch.float32, {"stitch": "official"}
    else:
        dtype = pick_precision("auto", device)
        network = prepare_for_inference(model, _TASK, dtype)
        options = {"overlap": int(contender.split()[1])}
    call = functools.partial(restore, network, image, _TASK, dtype=dtype, **options)
    names = ("restore", contender, f"{preset} {side}x{side}", dtype)
    measure(call, *names, Work(), baseline="official float32", capture=False)


# By hand: a whole photo, and a checkpoint.


def official_windows(height: int, width: int) -> int:
    """Windows that the reference code computes: the grid, and strips along the four edges (481x321: 972)."""
    rows, columns = ((side - SIZE) // (SIZE // 4) + 1 for side in (height, width))
    return rows * columns + 2 * (rows + columns) + 1


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return what a call takes; on a CPU the process's time, which other work on the machine does not lengthen."""
    if device.type != "cpu":
        return seconds_of(call, device)
    started = time.process_time()
    call()
    return time.process_time() - started


def speed(model: IPT, photo: Tensor, overlaps: Sequence[int], rounds: int) -> list[list[object]]:
    """Rows of the table of times: the official procedure scaled from ``_SAMPLE`` windows at a time, ours whole.

    The two take turns, so that a machine that wavers slows both.
    """
    device = next(model.parameters()).device
    dtype = pick_precision("auto", device)
    height, width = photo.shape[-2:]
    plain, prepared = plain_copy(model, need_weights=True), prepare_for_inference(model, _TASK, dtype)
    starts = range(0, width - SIZE + 1, SIZE // 4)[:_SAMPLE]
    windows = torch.cat([photo[..., :SIZE, x : x + SIZE] for x in starts]).float().to(device)
    official_times: list[float] = []
    our_times: dict[int, list[float]] = {overlap: [] for overlap in overlaps}
    for _ in range(rounds):
        for overlap, times in our_times.items():
            with torch.no_grad():
                official_times.append(_seconds(functools.partial(plain, windows, _TASK), device) / len(windows))
            times.append(_seconds(functools.partial(restore, prepared, photo, _TASK, overlap=overlap), device))
    counted = official_windows(height, width)
    official = statistics.median(official_times) * counted
    rows: list[list[object]] = [
        ["official", "float32", counted, f"{official:.1f} (scaled from {len(windows)} windows)", "1.0"]
    ]
    for overlap, times in our_times.items():
        seconds = statistics.median(times)
        tiles = tiling(height, width, SIZE, 1, overlap, "blend")
        number = len(tiles.rows.starts) * len(tiles.columns.starts)
        name = str(dtype).removeprefix("torch.")
        rows.append([f"blend, {overlap} px", name, number, f"{seconds:.1f}", f"{official / seconds:.1f}"])
    return rows


def quality(model: IPT, photos: Sequence[Tensor], tasks: Sequence[str], overlaps: Sequence[int]) -> list[list[object]]:
    """Rows of the table of quality: mean PSNR-Y of the official procedure, and what each of our ways differs by."""
    plain = plain_copy(model, need_weights=True)
    dtypes = dict.fromkeys((torch.float32, pick_precision("auto", next(model.parameters()).device)))
    rows: list[list[object]] = []
    for task in map(get_task, tasks):
        wanted: list[float] = []
        found: dict[tuple[int, torch.dtype], list[float]] = {(o, dtype): [] for o in overlaps for dtype in dtypes}
        for number, photo in enumerate(photos):
            height, width = (side - side % task.scale for side in photo.shape[-2:])
            x, clean = degrade(photo[None, :, :height, :width], task, seeds=torch.tensor([number]))
            score = functools.partial(psnr_y, target=clean, border=scored_border(task))
            wanted.append(score(restore(plain, x, task.name, stitch="official")).item())
            for (overlap, dtype), scores in found.items():
                scores.append(score(restore(model, x, task.name, overlap=overlap, dtype=dtype)).item())
        official = statistics.mean(wanted)
        for (overlap, dtype), scores in found.items():
            ours, name = statistics.mean(scores), str(dtype).removeprefix("torch.")
            figures = f"{official:.3f}", f"{ours:.3f}", f"{ours - official:+.3f}"
            rows.append([task.name, f"blend, {overlap} px", name, *figures])
    return rows


class _Ready(nn.Module):
    """A network whose outputs are there already, so that what a photo takes is what lies outside the network."""

    def __init__(self, scale: int):
        super().__init__()
        self.config, self.outputs = PRESETS["tiny"], nn.Parameter(torch.zeros(_BATCH, 3, SIZE * scale, SIZE * scale))

    def task_index(self, task: str) -> int:
        return 0

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.outputs[: len(x)]


def outside(presets: Sequence[str], photo: Tensor, rounds: int) -> list[list[object]]:
    """Rows: CPU milliseconds a window of the network (two at once), and of all else that restoring a photo takes."""
    array = photo.permute(1, 2, 0).contiguous().numpy()
    tiles = tiling(*photo.shape[-2:], SIZE, 1, 10, "blend")
    number = len(tiles.rows.starts) * len(tiles.columns.starts)
    rows: list[list[object]] = []
    for preset in presets:
        model = IPT(PRESETS[preset]).eval()
        dtype = pick_precision("auto", torch.device("cpu"))
        for task in ("denoise50", "sr2", "sr3", "sr4"):
            network, x = prepare_for_inference(model, task, dtype), torch.rand(2, 3, SIZE, SIZE) * 255
            ready = _Ready(get_task(task).scale)
            inside, around = [], []
            for i in range(rounds + 1):
                started = time.process_time()
                network(x)
                middle = time.process_time()
                restore(ready, array, task, batch_size=_BATCH)
                if i:  # the first round warms up
                    inside.append((middle - started) / len(x))
                    around.append((time.process_time() - middle) / number)
            window, rest = statistics.median(inside), statistics.median(around)
            share = 100 * rest / (window + rest)
            rows.append([preset, task, f"{1e3 * window:.1f}", f"{1e3 * rest:.3f}", f"{share:.2f} %"])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_restore", description=__doc__.split("\n")[0])
    parser.add_argument("--photo", nargs="+", type=Path, required=True, help="photos; the first is the one timed")
    parser.add_argument("--preset", choices=PRESETS, default="base", help="network that is timed, at random weights")
    parser.add_argument("--checkpoint", type=Path, help="network whose quality is measured")
    parser.add_argument("--tasks", nargs="+", default=["sr2", "derain", "denoise50"], help="for the quality")
    parser.add_argument("--overlap", nargs="+", type=int, default=[10, 6, 4], help="of our windows, in pixels")
    parser.add_argument("--rounds", type=int, default=2, help="of the times")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=("speed", "quality", "outside"))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["base", "pocket"], help="for outside")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    photos = [read_rgb(path) for path in args.photo]
    height, width = photos[0].shape[-2:]
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.only == "outside":
        columns = ["network", "task", "network, ms a window", "outside, ms a window", "outside"]
        print_table(f"{width}x{height}, CPU time", columns, outside(args.presets, photos[0], args.rounds), columns[2:])
        return 0
    if args.only != "quality":
        torch.manual_seed(0)
        network = IPT(PRESETS[args.preset]).eval().to(device)
        columns = ["way", "dtype", "windows", "seconds", "times faster"]
        rows = speed(network, photos[0][None].to(device), args.overlap, args.rounds)
        print_table(f"{args.photo[0].name}, {width}x{height}, {args.preset} network", columns, rows, columns[2:])
    if args.checkpoint and args.only != "speed":
        columns = ["task", "way", "dtype", "official, dB", "ours, dB", "difference, dB"]
        rows = quality(load_checkpoint(args.checkpoint).to(device), photos, args.tasks, args.overlap)
        print_table(f"PSNR-Y of {args.checkpoint}, {len(photos)} photos", columns, rows, columns[3:])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
