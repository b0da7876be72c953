"""The losses of the product's training and of a plain trainer on the same batches, step by step, in float32.

python -m bench.weights.same_curve --data PHOTOS [--steps 300]
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench.baselines.plain_trainer import PlainTrainer
from ipt_fast.data import build_index, make_loader
from ipt_fast.engine.config import TrainConfig, learning_rate, recipe
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.step import TrainStep
from ipt_fast.model import IPT
from ipt_fast.ops import degrade

FOLDER = Path(__file__).parents[2] / "bench" / "results" / "same_curve"
SETTINGS = ["precision=fp32", "clip_grad=0", "model.num_layers=1", "warmup_steps=20"]


def both_losses(config: TrainConfig, data: Path, steps: int) -> Iterator[tuple[str, float, float]]:
    """Yield the task and the loss before each step, of the product and of the plain trainer."""
    torch.manual_seed(config.seed)
    model = IPT(config.model)
    plain = PlainTrainer(model, config.lam)
    step = TrainStep(model, config, DistInfo(0, 1, torch.device("cpu")), degrade)
    loader = make_loader(
        build_index([data], min_size=config.model.patch_size), loader="torch", tasks=config.model.tasks,
        batch_size=config.batch_size, patch_size=config.model.patch_size, seed=config.seed, workers=0,
    )  # fmt: skip
    for number in range(steps):
        batch = next(loader)
        x, target = step.prepare(batch)
        lr = learning_rate(config, number, steps)
        yield batch.task, step(x, target, batch.task, lr).read().total, plain.step(x, target, batch.task, lr)
    loader.close()


def draw(losses: Sequence[tuple[str, float, float]], path: Path) -> None:
    """Draw both curves, and below the relative difference of each step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = range(1, len(losses) + 1)
    upper.plot(steps, [ours for _, ours, _ in losses], color="#4477aa", lw=2.4, label="ipt-fast")
    upper.plot(steps, [plain for _, _, plain in losses], color="#ee6677", lw=0.9, label="plain trainer")
    upper.set(ylabel="loss, levels (log)", yscale="log", title="The same batches, float32, one thread")
    upper.set_yticks([10, 20, 40, 60, 80], ["10", "20", "40", "60", "80"])
    upper.minorticks_off()
    upper.legend(frameon=False)
    lower.plot(steps, [max(abs(a - b) / b, 1e-8) for _, a, b in losses], ".", ms=3, color="#222255")
    lower.set(ylabel="relative difference\n(equal: 1e-8)", xlabel="step", yscale="log")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Train both; write losses and plot."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.same_curve", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    losses = list(both_losses(recipe("tiny", [*SETTINGS, f"steps={args.steps}"]), args.data, args.steps))
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [[task, round(ours, 6), round(plain, 6)] for task, ours, plain in losses]
    (args.out / "losses.json").write_text(json.dumps(rows) + "\n")
    draw(losses, args.out / "losses.png")
    for count in (1, 20, 100, args.steps):
        worst = max(abs(a - b) / b for _, a, b in losses[:count])
        print(f"first {count} steps: largest relative difference {worst:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
