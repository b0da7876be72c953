"""How much faster is restoring a photo than by the official procedure, and what does that cost in quality?

The official procedure: 48x48 windows at a quarter of their side, float32, the network written plainly. Ours: the same
network in few windows that fade into each other, in bfloat16 where the processor has it.

``ipt-fast bench --only restore`` times both on a crop. The figures on a whole photo, and the quality of a checkpoint:

    python -m bench.bench_restore --photo photo.png
    python -m bench.bench_restore --photo photos/*.png --checkpoint runs/tiny/checkpoint.pt --tasks sr2 denoise50

The whole photo takes the official procedure several minutes, so its time is that of some windows, in batches of eight
between runs of ours, times their number; ours is timed whole.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.baselines.plain_ipt import PlainIPT, plain_copy
from bench.case import Work
from bench.ceilings import device_name
from ipt_fast import load_checkpoint, restore
from ipt_fast.cli._network import pick_precision
from ipt_fast.cli.tables import print_table
from ipt_fast.evaluation.metrics import psnr_y
from ipt_fast.inference import prepare_for_inference
from ipt_fast.inference.tiles import blend_axis
from ipt_fast.io.images import read_rgb
from ipt_fast.model import IPT, PRESETS
from ipt_fast.ops import degrade
from ipt_fast.tasks import get_task

SIZE = 48
_TASK = "denoise50"
_SAMPLE = 8  # windows of the official procedure that are timed at once


class Plain(PlainIPT):
    """The plain network with what ``restore`` asks of a network."""

    def task_index(self, task: str) -> int:
        return self.config.tasks.index(task)


def plain_network(model: IPT) -> Plain:
    """Return the official network with the weights of ``model``; its attention makes its probabilities."""
    plain = plain_copy(model, need_weights=True)
    plain.__class__ = Plain
    return plain  # type: ignore[return-value]


def official_windows(height: int, width: int) -> int:
    """Windows that the reference code computes: the grid, and strips along the four edges (481x321: 972)."""
    rows, columns = ((side - SIZE) // (SIZE // 4) + 1 for side in (height, width))
    return rows * columns + 2 * (rows + columns) + 1


def our_windows(height: int, width: int, overlap: int) -> int:
    """Windows of ``stitch="blend"``."""
    return len(blend_axis(height, SIZE, 1, overlap).starts) * len(blend_axis(width, SIZE, 1, overlap).starts)


# In the suite: the same crop by each way, whole.

CONTENDERS = ("official", "blend 10 px", "blend 4 px")


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_restore(measure, device, small, contender):
    """Restore a crop of 144x144 (96x96 if small): 81 windows of the official grid, or 16 and 16 of ours."""
    preset = "tiny" if small or device.type == "cpu" else "base"
    side = 96 if small else 144
    model = IPT(PRESETS[preset]).eval().to(device)
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    if contender == "official":
        network, dtype, options = plain_network(model), torch.float32, {"stitch": "official"}
    else:
        dtype = pick_precision("auto", device)
        network = prepare_for_inference(model, _TASK, dtype)
        options = {"overlap": int(contender.split()[1])}
    measure(
        lambda: restore(network, image, _TASK, dtype=dtype, **options),
        op="restore",
        contender=contender,
        shape=f"{preset} {side}x{side}",
        dtype=dtype,
        work=Work(),
        baseline="official float32",
        capture=False,
    )


# By hand: a whole photo, and a checkpoint.


def speed(model: IPT, photo: Tensor, overlaps: Sequence[int], rounds: int) -> list[list[object]]:
    """Rows of the table of times: the official procedure scaled from ``_SAMPLE`` windows at a time, ours whole.

    The two take turns, so that a machine that wavers slows both.
    """
    device = next(model.parameters()).device
    height, width = photo.shape[-2:]
    plain = plain_network(model)
    starts = range(0, width - SIZE + 1, SIZE // 4)[:_SAMPLE]
    windows = torch.cat([photo[..., :SIZE, x : x + SIZE] for x in starts]).float().to(device)
    counted = official_windows(height, width)

    def official() -> None:
        with torch.no_grad():
            plain(windows, _TASK)

    def ours(overlap: int, dtype: torch.dtype) -> Callable[[], object]:
        prepared = prepare_for_inference(model, _TASK, dtype)
        return lambda: restore(prepared, photo, _TASK, overlap=overlap)

    ways: dict[tuple[int, torch.dtype], list[float]] = {(o, pick_precision("auto", device)): [] for o in overlaps}
    timed_windows: list[float] = []
    for _ in range(rounds):
        for (overlap, dtype), times in ways.items():
            timed_windows.append(_seconds(official, device) / len(windows))
            times.append(_seconds(ours(overlap, dtype), device))
    official_time = statistics.median(timed_windows) * counted
    rows: list[list[object]] = [
        ["official", "float32", counted, f"{official_time:.1f} (scaled from {len(windows)} windows)", "1.0"]
    ]
    for (overlap, dtype), times in ways.items():
        seconds = statistics.median(times)
        name = str(dtype).removeprefix("torch.")
        number = our_windows(height, width, overlap)
        rows.append([f"blend, {overlap} px", name, number, f"{seconds:.1f}", f"{official_time / seconds:.1f}"])
    return rows


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def quality(model: IPT, photos: Sequence[Tensor], tasks: Sequence[str], overlaps: Sequence[int]) -> list[list[object]]:
    """Rows of the table of quality: mean PSNR-Y of the official procedure, and what each of our ways differs by."""
    device = next(model.parameters()).device
    plain = plain_network(model)
    ways = [(o, dtype) for o in overlaps for dtype in dict.fromkeys((torch.float32, pick_precision("auto", device)))]
    rows: list[list[object]] = []
    for task in map(get_task, tasks):
        border = task.scale if task.kind == "sr" else 0
        wanted: list[float] = []
        found: dict[tuple[int, torch.dtype], list[float]] = {way: [] for way in ways}
        for number, photo in enumerate(photos):
            height, width = (side - side % task.scale for side in photo.shape[-2:])
            x, clean = degrade(photo[None, :, :height, :width], task, seeds=torch.tensor([number]))
            wanted.append(psnr_y(restore(plain, x, task.name, stitch="official"), clean, border).item())
            for overlap, dtype in ways:
                output = restore(model, x, task.name, overlap=overlap, dtype=dtype)
                found[overlap, dtype].append(psnr_y(output, clean, border).item())
        official = statistics.mean(wanted)
        for overlap, dtype in ways:
            score = statistics.mean(found[overlap, dtype])
            name = str(dtype).removeprefix("torch.")
            difference = f"{score - official:+.3f}"
            rows.append([task.name, f"blend, {overlap} px", name, f"{official:.3f}", f"{score:.3f}", difference])
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
    parser.add_argument("--only", choices=("speed", "quality"))
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    photos = [read_rgb(path) for path in args.photo]
    height, width = photos[0].shape[-2:]
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
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
