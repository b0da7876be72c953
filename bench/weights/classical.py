"""Denoisers that were never trained, beside the network that ships, on the same images with the same noise.

    pip install "ipt-fast[bench,demo]" bm3d
    python -m bench.weights.classical --sets FOLDER --limit 20 --out bench/results/classical

BM3D is its authors' package (CBM3D: colours taken apart, groups found in luma); non-local means and wavelets are
scikit-image's, with the settings that its documentation gives for known noise. All are told the true sigma. Noise is
"clipped" to 0..255, as the network is trained, or "unclipped", as most published tables have it. Seconds are the CPU
time of the process, all its threads. What is in OUT already is kept, but for the network, which is scored again.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.weights.scores import unclipped_pair
from ipt_fast.checkpoint import load_checkpoint
from ipt_fast.cli.tables import markdown_table
from ipt_fast.evaluation.metrics import finite_mean, psnr_rgb, psnr_y
from ipt_fast.evaluation.score import INPUT, lq_and_gt
from ipt_fast.evaluation.test_sets import find_set
from ipt_fast.inference import prepare_for_inference, restore
from ipt_fast.io.atomic import atomic_write
from ipt_fast.tasks import Task, get_task

TASKS = "denoise30", "denoise50"
NOISES = "clipped", "unclipped"
SHIPS = "pocket, ships"
COLUMNS = "task", "noise", "method", "images", "PSNR Y", "PSNR RGB", "CPU s/MP"

Denoiser = Callable[[Tensor, Task], Tensor]
Units = Callable[[np.ndarray, float], np.ndarray]  # RGB [H, W, 3] and sigma in units of 255 levels


def bm3d(image: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise by BM3D."""
    from bm3d import bm3d_rgb

    return bm3d_rgb(image, sigma)


def non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise by non-local means."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(image, 5, 6, h=0.6 * sigma, sigma=sigma, fast_mode=False, channel_axis=2)


def wavelets(image: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise by soft thresholds of wavelet coefficients (BayesShrink)."""
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(image, sigma, channel_axis=2, convert2ycbcr=True, rescale_sigma=True)


CLASSICAL: dict[str, Units] = {"BM3D": bm3d, "non-local means": non_local_means, "wavelets": wavelets}


def in_levels(method: Units) -> Denoiser:
    """Return a method of colours 0..1 as one of [1, 3, H, W], 0..255."""

    def denoise(lq: Tensor, task: Task) -> Tensor:
        out = method(lq[0].permute(1, 2, 0).double().numpy() / 255, task.sigma / 255)
        return torch.from_numpy(np.ascontiguousarray(out)).float().permute(2, 0, 1)[None] * 255

    return denoise


def score_methods(
    methods: dict[str, Denoiser], task: Task, noise: str, folder: Path, limit: int | None
) -> list[list[str]]:
    """Return a row of ``COLUMNS`` for each method: means over the first ``limit`` images."""
    rows: list[list[str]] = []
    pairs = find_set(folder, task).pairs[:limit]
    noisy = [(lq_and_gt if noise == "clipped" else unclipped_pair)(pair, task, n) for n, pair in enumerate(pairs)]
    for name, method in methods.items():
        values, seconds, pixels = [], 0.0, 0
        for lq, gt in noisy:
            start = time.process_time()
            output = method(lq, task)
            seconds += time.process_time() - start
            pixels += gt.shape[-1] * gt.shape[-2]
            output = output if name == INPUT else output.round().clamp(0, 255)
            values.append((psnr_y(output, gt).item(), psnr_rgb(output, gt).item()))
        y, rgb = (finite_mean(column) for column in zip(*values, strict=True))
        cost = "" if name == INPUT else f"{seconds / pixels * 1e6:.1f}"
        rows.append([task.name, noise, name, str(len(values)), f"{y:.2f}", f"{rgb:.2f}", cost])
        print(*rows[-1], flush=True)
    return rows


def draw(rows: Sequence[Sequence[str]], path: Path) -> None:
    """Draw PSNR over seconds a megapixel, one panel a task, of clipped noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, len(TASKS))
    for axes, task in zip(panels, TASKS, strict=True):
        for row in rows:
            if row[:2] == [task, "clipped"] and row[6]:
                seconds, psnr = float(row[6]), float(row[5])
                colour = "#888888" if row[2] in CLASSICAL else "#4477aa"
                axes.plot(seconds, psnr, "o", color=colour, ms=7)
                axes.annotate(row[2], (seconds, psnr), (0, 8), textcoords="offset points", ha="center")
        axes.set(title=task, xlabel="CPU seconds a megapixel (log)", ylabel="PSNR, RGB, dB", xscale="log")
        axes.margins(0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Score all and write classical.csv, classical.md and classical.png."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.classical", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sets", type=Path, required=True, help="folder with CBSD68")
    add("--limit", type=int, help="images of the set (default all)")
    add("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    table = args.out / "classical.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    old = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))[1:] if table.exists() else []
    rows: list[list[str]] = []
    classical = {INPUT: lambda lq, task: lq, **{name: in_levels(method) for name, method in CLASSICAL.items()}}
    for task in map(get_task, TASKS):
        network = prepare_for_inference(load_checkpoint("pretrained"), task.name)
        ours = {SHIPS: lambda lq, task, network=network: restore(network, lq, task.name)}
        for noise in NOISES:
            kept = [row for row in old if row[:2] == [task.name, noise] and row[2] != SHIPS]
            methods = ours if kept else classical | ours
            rows += kept + score_methods(methods, task, noise, args.sets / "CBSD68", args.limit)
    with atomic_write(table, "w") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    images = f"the first {args.limit} images" if args.limit else "all images"
    page = (
        f"# Denoisers that were never trained, and the network that ships\n\nCBSD68, {images}, dB. "
        "`python -m bench.weights.classical` says how.\n\n"
        f"{markdown_table(COLUMNS, rows, COLUMNS[3:])}\n\n![PSNR over seconds](classical.png)\n"
    )
    with atomic_write(args.out / "classical.md", "w") as file:
        file.write(page)
    draw(rows, args.out / "classical.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
