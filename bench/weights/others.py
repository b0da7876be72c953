"""Train other people's networks on the same photos for the same CPU time, each for one task.

    OMP_NUM_THREADS=1 python -m bench.weights.others edsr swinir --tasks sr2 --data DIR --seconds 1500

A network of six tasks had ``--seconds`` for each of them; each of these has as long for its one. Adam, L1, the same
crops, noise and rain, float32 weights under bfloat16 autocast, one thread, a cosine over the time. Networks that are
in OUT already are left out. ``bench.weights.compare`` scores them.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from bench.baselines.restorers import make
from ipt_fast.data import SR_MARGIN, build_index, make_loader
from ipt_fast.io.atomic import atomic_write
from ipt_fast.losses import l1_loss
from ipt_fast.ops import degrade
from ipt_fast.tasks import TASKS, Task, get_task

RATES = {"dncnn": 1e-3, "edsr": 1e-3, "swinir": 5e-4}


def train(name: str, task: Task, data: Path, seconds: float, batch_size: int = 8) -> tuple[nn.Module, int]:
    """Train for that much CPU time; returns the network and its steps."""
    torch.manual_seed(0)
    network = make(name, task.scale).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
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
            output = network(x.contiguous(memory_format=torch.channels_last))
        loss = l1_loss(output.float(), target)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if steps % 200 == 0:
            print(f"{name} {task.name}: step {steps}, {100 * done:.0f} %, L1 {loss.item():.2f}", flush=True)
    loader.close()
    return network.eval(), steps


def load(path: Path) -> tuple[nn.Module, dict]:
    """Return a trained network and its notes: network, task, steps, seconds."""
    state = torch.load(path, weights_only=True)
    network = make(state["network"], get_task(state["task"]).scale).eval()
    network.load_state_dict(state.pop("weights"))
    return network, state


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.others", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("networks", nargs="+", choices=RATES)
    add("--tasks", nargs="+", choices=TASKS, required=True)
    add("--data", type=Path, required=True, help="folder of training photos")
    add("--seconds", type=float, required=True, help="CPU time of each network and task")
    add("--out", type=Path, default=Path("runs/others"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for task in map(get_task, args.tasks):
        for name in args.networks:
            path = args.out / f"{name}_{task.name}.pt"
            if path.exists():
                continue
            network, steps = train(name, task, args.data, args.seconds)
            notes = {"network": name, "task": task.name, "steps": steps, "seconds": args.seconds}
            with atomic_write(path) as file:
                torch.save({**notes, "weights": network.state_dict()}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
