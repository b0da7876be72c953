"""One table and one plot: the network that ships beside others trained as long for one task, and classical methods.

    pip install "ipt-fast[bench,demo]" bm3d
    OMP_NUM_THREADS=1 python -m bench.weights.compare runs/others --sets FOLDER --limit 20 --out bench/results/compare

The networks are those that ``bench.weights.others`` trained; they see an image whole, in bfloat16 as they were trained,
ours goes through ``restore``. Noise is "clipped" to 0..255, as all were trained, or "unclipped", as most published
tables have it. Seconds are CPU time of the process for a part of an image, the least of three times. A row that OUT has
stays, also when its network is no longer there or has been replaced by one of more hours.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.weights.classical import CLASSICAL, Restorer
from bench.weights.others import load
from bench.weights.pack import LOG, read_rows
from bench.weights.scores import SETS, unclipped_pair
from ipt_fast.checkpoint import load_checkpoint
from ipt_fast.cli.tables import markdown_table
from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.evaluation.metrics import finite_mean, psnr_rgb, psnr_y, scored_border
from ipt_fast.evaluation.score import lq_and_gt
from ipt_fast.evaluation.test_sets import find_set
from ipt_fast.inference import prepare_for_inference, restore
from ipt_fast.io.atomic import atomic_write
from ipt_fast.tasks import Task, get_task

TASKS = "sr2", "denoise30", "denoise50"
SHIPS = "IPT pocket, six tasks"
PAPERS = {"dncnn": "DnCNN", "edsr": "EDSR of 32 features", "swinir": "SwinIR of 4 layers"}
NOISES = {"sr": ("",), "denoise": ("clipped", "unclipped")}
COLUMNS = "task", "noise", "method", "trained, CPU s", "images", "PSNR Y", "PSNR RGB", "CPU s/MP"
SIDE = 192  # of the part that is timed
# kind -> colour, where its label stands in points from the dot, aligned: each kind on a side of its own
LABELS = {
    "classical": ("#888888", (0, 8), "center"),
    "other": ("#4477aa", (-7, -3), "right"),
    "ours": ("#ee6677", (7, -3), "left"),
}


def whole(network: nn.Module) -> Restorer:
    """Return a network that takes sides of multiples of 8 as one for any image, in bfloat16."""
    network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(lq: Tensor, task: Task) -> Tensor:
        h, w = lq.shape[-2:]
        x = F.pad(lq, (0, -w % 8, 0, -h % 8), mode="reflect").contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(x).float()[..., : h * task.scale, : w * task.scale]

    return run


def methods(task: Task, others: Path) -> dict[tuple[str, str], Restorer]:
    """Return (method, its training for this task in CPU seconds) -> what restores; the input's comes first."""
    found: dict[tuple[str, str], Restorer] = {}
    if task.kind == "sr":
        found["bicubic", ""] = lambda lq, task: bicubic_up(lq, task.scale)
    else:
        found["input", ""] = lambda lq, task: lq
        found |= {(name, ""): method for name, method in CLASSICAL.items()}
    for name, title in PAPERS.items():
        path = others / f"{name}_{task.name}.pt"
        if path.exists():
            network, notes = load(path)
            found[title, f"{notes['seconds']:.0f}"] = whole(network)
    model = load_checkpoint("pretrained")
    seconds = read_rows(LOG)[-1]["hours"] * 3600 / len(model.config.tasks)
    prepared = prepare_for_inference(model, task.name)
    found[SHIPS, f"{seconds:.0f}"] = lambda lq, task: restore(prepared, lq, task.name)
    return found


def score(method: Restorer, pairs: Sequence[tuple[Tensor, Tensor]], task: Task) -> list[str]:
    """Return how many images, and the means of PSNR of luma and of RGB."""
    border, values = scored_border(task), []
    for lq, gt in pairs:
        output = method(lq, task).round().clamp(0, 255)
        values.append((psnr_y(output, gt, border).item(), psnr_rgb(output, gt, border).item()))
    y, rgb = (finite_mean(column) for column in zip(*values, strict=True))
    return [str(len(values)), f"{y:.2f}", f"{rgb:.2f}"]


def cost(method: Restorer, lq: Tensor, task: Task) -> str:
    """Return CPU seconds a megapixel of output."""
    spent, lq = [], lq[..., :SIDE, :SIDE]
    for _ in range(3):
        start = time.process_time()
        output = method(lq, task)
        spent.append(time.process_time() - start)
    return f"{min(spent) / output.shape[-1] / output.shape[-2] * 1e6:.2f}"


def draw(rows: Sequence[Sequence[str]], path: Path) -> None:
    """Draw PSNR over seconds a megapixel, one panel a task, of clipped noise; the least and longest trained of each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS), sharex=True), TASKS, strict=True):
        drawn = [row for row in rows if row[0] == task and row[1] in ("", "clipped") and row[2] != "input"]
        drawn.sort(key=lambda row: float(row[3] or 0))
        longest = {row[2]: row for row in drawn}
        least = {row[2]: row for row in reversed(drawn) if row is not longest[row[2]]}
        for row in [*longest.values(), *least.values()]:
            name, trained = row[2:4]
            seconds, psnr = float(row[-1]), float(row[5] if task == "sr2" else row[6])
            colour, place, ha = LABELS["ours" if name == SHIPS else "other" if trained else "classical"]
            axes.plot(seconds, psnr, "o", color=colour, ms=7)
            title = name.split(" of ")[0].removesuffix(", six tasks") if row is longest[name] else ""
            label = ", ".join(filter(None, (title, f"{trained} s" if trained else "")))
            axes.annotate(label, (seconds, psnr), place, textcoords="offset points", ha=ha, fontsize=9)
        metric = "luma" if task == "sr2" else "RGB"
        axes.set(title=task, xlabel="CPU seconds a megapixel (log)", ylabel=f"PSNR, {metric}, dB", xscale="log")
        axes.margins(0.2, 0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def write_page(rows: Sequence[Sequence[str]], out: Path) -> None:
    """Write compare.md, the best of a task last, and compare.png."""
    ordered = sorted(rows, key=lambda row: (TASKS.index(row[0]), row[1], float(row[6])))
    with atomic_write(out / "compare.md", "w") as file:
        file.write(PAGE.format(table=markdown_table(COLUMNS, ordered, COLUMNS[3:]).rstrip()))
    draw(rows, out / "compare.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not there yet; write compare.csv, compare.md and compare.png."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.compare", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("others", type=Path, help="folder of bench.weights.others")
    add("--sets", type=Path, required=True, help="folder with Set5 and CBSD68")
    add("--limit", type=int, help="images of each set (default all)")
    add("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "compare.csv"
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))[1:] if table.exists() else []
    done = {tuple(row[:4]) for row in rows}
    for task in map(get_task, TASKS):
        pairs = find_set(args.sets / dict(SETS)[task.name], task).pairs[: args.limit]
        restorers = methods(task, args.others)
        for noise in NOISES[task.kind]:
            missing = {key: method for key, method in restorers.items() if (task.name, noise, *key) not in done}
            make = unclipped_pair if noise == "unclipped" else lq_and_gt
            made = [make(pair, task, n) for n, pair in enumerate(pairs)] if missing else []
            for key, method in missing.items():
                rows.append([task.name, noise, *key, *score(method, made, task), cost(method, made[0][0], task)])
                print(*rows[-1], flush=True)
                with atomic_write(table, "w") as file:
                    csv.writer(file).writerows([COLUMNS, *rows])
    write_page(rows, args.out)
    return 0


PAGE = """# The network that ships, beside others of equal cost and beside classical methods

The networks with CPU seconds of training in the table were trained by `python -m bench.weights.others`, each for its
one task, on the same 800 photos with the same crops and noise. Ours has six tasks, so a sixth of its core hours counts
for each, by the clock of cores that other work shared until the last 34,500 steps. `python -m bench.weights.compare`
measured all. PSNR in dB: Set5 for `sr2` (luma leaves out two pixels at each side), CBSD68 for noise. One seed each.
Seconds are CPU time of a shared machine, on which one network took up to 1.5 times as long as at another moment.

{table}

![PSNR over CPU seconds a megapixel](compare.png)

Beside a name: its CPU seconds of training. Noise is clipped.
"""

if __name__ == "__main__":
    sys.exit(main())
