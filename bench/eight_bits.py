"""int8 against float32 and bfloat16 on a CPU: linear layers, networks, and what it costs in quality.

    python -m bench.eight_bits --set5 DIR --cbsd68 DIR

All in this process's CPU time, one thread, contenders in turns, medians. Sets are folders of clean photos.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ipt_fast import load_checkpoint, prepare_for_inference, restore
from ipt_fast.cli.tables import print_table
from ipt_fast.evaluation.metrics import psnr_y, scored_border
from ipt_fast.inference.linear import arithmetic
from ipt_fast.io.images import read_rgb
from ipt_fast.io.scan import image_files
from ipt_fast.model import IPT, PRESETS
from ipt_fast.ops import degrade
from ipt_fast.tasks import get_task

_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
_SHAPES = ((576, 1728), (576, 576), (576, 2304), (2304, 576))  # D -> D_out of the layers of base
_CROP = 200  # the middle of a photo that is denoised
_ROWS = 1024  # four windows of base


def seconds_in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each call, after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if i:
                found[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in found.items()}


def layers(rounds: int) -> list[list[str]]:
    """Rows: GOP/s of linear layers of base, scales and bias included."""
    rows, cpu = [], torch.device("cpu")
    for D, wide in _SHAPES:
        weight, bias = torch.randn(wide, D), torch.randn(wide)
        calls = {}
        for dtype in _DTYPES:
            how = arithmetic(dtype, cpu)
            layer = how.linear(weight, bias)
            calls[str(dtype)] = functools.partial(layer, torch.randn(_ROWS, D).to(how.dtype))
        with torch.no_grad():
            times = seconds_in_turns(calls, rounds)
        work = 2 * _ROWS * D * wide / 1e9
        rows.append([f"[{_ROWS}, {D}] x [{D}, {wide}]", *(f"{work / t:.1f}" for t in times.values())])
    return rows


def networks(presets: Sequence[str], rounds: int) -> list[list[str]]:
    """Rows: milliseconds a window, two at once."""
    rows = []
    for name in presets:
        model, x = IPT(PRESETS[name]).eval(), torch.rand(2, 3, 48, 48) * 255
        prepared = [prepare_for_inference(model, "denoise50", dtype) for dtype in _DTYPES]
        times = seconds_in_turns({str(p.dtype): functools.partial(p, x) for p in prepared}, rounds)
        rows.append([name, *(f"{1e3 * t / 2:.0f}" for t in times.values())])
    return rows


def quality(cases: Sequence[tuple[str, Sequence[Path]]]) -> list[list[str]]:
    """Rows: PSNR-Y of the network that comes with the package, float32 and int8, for (task, photos)."""
    model, rows = load_checkpoint("pretrained"), []
    for name, paths in cases:
        task, scores = get_task(name), []
        networks = [prepare_for_inference(model, name, dtype) for dtype in (torch.float32, torch.int8)]
        for number, path in enumerate(paths):
            photo: Tensor = read_rgb(path)
            if task.scale == 1:
                top, left = ((side - _CROP) // 2 for side in photo.shape[-2:])
                photo = photo[:, top : top + _CROP, left : left + _CROP]
            high, wide = (side - side % task.scale for side in photo.shape[-2:])
            x, clean = degrade(photo[None, :, :high, :wide], task, seeds=torch.tensor([number]))
            border = scored_border(task)
            scores.append([psnr_y(restore(n, x, name), target=clean, border=border).item() for n in networks])
        full, eight = (statistics.mean(column) for column in zip(*scores, strict=True))
        rows.append([f"{name}, {paths[0].parent.name}", str(len(paths)), f"{full:.3f}", f"{eight - full:+.4f}"])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.eight_bits", description=__doc__.split("\n")[0])
    parser.add_argument("--set5", type=Path, help="folder of photos, for super-resolution")
    parser.add_argument("--cbsd68", type=Path, help="folder of photos, the first three of which are denoised")
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=["tiny", "small"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = [str(dtype).removeprefix("torch.") for dtype in _DTYPES]
    print_table("linear layers of base, GOP/s", ["layer", *names], layers(args.rounds), names)
    if args.presets:
        print_table("milliseconds a window", ["network", *names], networks(args.presets, args.rounds), names)
    cases = []
    for folder, tasks, most in ((args.set5, ("sr2", "sr4"), 5), (args.cbsd68, ("denoise30", "denoise50"), 3)):
        paths = image_files(folder)[:most] if folder else []
        cases += [(task, paths) for task in tasks if paths]
    columns = ("task, photos", "photos", "float32, dB", "int8")
    if cases:
        print_table("PSNR-Y of the network that comes with the package", columns, quality(cases), columns[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
