"""Other people's networks trained on the same photos for the same CPU time, one a task, beside the one that ships.

    python -m bench.weights.others dncnn edsr swinir --data PHOTOS --sets FOLDER --seconds 6000 --out runs/others

A network of six tasks had ``--seconds`` for each of them; each of these is trained for one task for as long. Adam, L1,
the same crops, noise and rain, float32 weights under bfloat16 autocast, a cosine over the time.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.baselines.restorers import make
from bench.weights.scores import SETS, SetScore
from ipt_fast.cli.tables import print_table
from ipt_fast.data import SR_MARGIN, build_index, make_loader
from ipt_fast.evaluation.score import INPUT, Method, mean_scores, score_set
from ipt_fast.evaluation.test_sets import find_set
from ipt_fast.io.atomic import atomic_write
from ipt_fast.losses import l1_loss
from ipt_fast.model import IPTConfig
from ipt_fast.ops import degrade
from ipt_fast.tasks import Task, get_task

RATES = {"dncnn": 1e-3, "edsr": 1e-3, "swinir": 5e-4}


class AsIPT(nn.Module):
    """A network of one task in the shape that ``restore`` takes."""

    def __init__(self, network: nn.Module, task: str):
        super().__init__()
        self.network = network
        self.config = replace(IPTConfig(), tasks=(task,))

    def task_index(self, task: str) -> int:
        return self.config.tasks.index(task)

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.network(x)


def train(name: str, task: Task, data: Path, seconds: float, batch_size: int = 8) -> tuple[nn.Module, int]:
    """Train for that much CPU time; returns the network and its steps."""
    torch.manual_seed(0)
    network = make(name, task.scale).train()
    optimizer = torch.optim.Adam(network.parameters())
    loader = make_loader(
        build_index([data], min_size=48), loader="torch", tasks=(task.name,), batch_size=batch_size, patch_size=48,
        crops_per_image=2, workers=0,
    )  # fmt: skip
    start, steps = time.process_time(), 0
    while (done := (time.process_time() - start) / seconds) < 1:
        batch = next(loader)
        x, target = degrade(batch.gt, task, seeds=batch.seeds, margin=SR_MARGIN if task.kind == "sr" else 0)
        optimizer.param_groups[0]["lr"] = RATES[name] * (1 + math.cos(math.pi * done)) / 2 * min(1.0, (steps + 1) / 100)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(x)
        l1_loss(output.float(), target).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        steps += 1
    loader.close()
    return network.eval(), steps


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score; a network that has been scored is left out."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.others", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("networks", nargs="+", choices=RATES)
    add("--data", type=Path, required=True, help="folder of training photos")
    add("--sets", type=Path, required=True, help="folder of test sets")
    add("--seconds", type=float, required=True, help="CPU time of each network and task")
    add("--tasks", nargs="+", default=[task for task, _ in SETS])
    add("--limit", type=int, help="images of each set (default all)")
    add("--out", type=Path, default=Path("runs/others"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.networks:
        for task in map(get_task, args.tasks):
            if name == "dncnn" and task.scale > 1:
                continue
            path = args.out / f"{name}_{task.name}.json"
            if not path.exists():
                network, steps = train(name, task, args.data, args.seconds)
                images = find_set(args.sets / dict(SETS)[task.name], task)
                method = Method(AsIPT(network, task.name), task.name, {"batch_size": 8})  # type: ignore[arg-type]
                scores = list(score_set(images, task, {name: method}, limit=args.limit))
                before, after = sorted(mean_scores(scores), key=lambda mean: mean.method != INPUT)
                values = before.psnr_y, after.psnr_y, before.psnr_rgb, after.psnr_rgb
                score = SetScore(task.name, images.name, before.images, "", *values)
                result = {"network": name, "steps": steps, "seconds": args.seconds, **asdict(score)}
                with atomic_write(path, "w") as file:
                    file.write(json.dumps(result, indent=1) + "\n")
            result = json.loads(path.read_text(encoding="utf-8"))
            rows.append([name, task.name, result["steps"], f"{result['input_y']:.2f}", f"{result['output_y']:.2f}"])
    columns = ("network", "task", "steps", "input, Y", "output, Y")
    print_table(f"{args.seconds:g} CPU seconds each", columns, rows, columns[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
