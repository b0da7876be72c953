"""The prediction where it can be checked: on this CPU, one thread, with rates measured here, against measured steps.

    python -m bench.count.cpu [--out DIR]

Rates are measured and the step is timed in turns, so that another load on the machine meets both.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.count.predict import seconds_by_kind
from bench.count.rates import Device
from bench.count.trace import trace_step
from ipt_fast.cli.tables import markdown_table, print_table
from ipt_fast.engine.config import TrainConfig, recipe
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.step import TrainStep
from ipt_fast.engine.trainer import initial_model
from ipt_fast.ops import degrade
from ipt_fast.tasks import get_task

_COLUMNS = ("recipe", "B", "GFLOP/s", "GB/s", "predicted, s", "measured, s", "predicted / measured")
_CASES = (("tiny", 8, "fp32"), ("tiny", 8, "bf16"), ("small", 2, "fp32"), ("small", 2, "bf16"))
_ROUNDS = 5


def _seconds(call: Callable[[], object]) -> float:
    started = time.process_time()  # of this process alone
    call()
    return time.process_time() - started


def measured(config: TrainConfig, task: str, dtype: torch.dtype) -> tuple[Device, float]:
    """Return this CPU's rates, and the seconds of a step: medians of rounds in turns."""
    D, rows = config.model.embed_dim, config.batch_size * config.model.num_tokens
    a, b = torch.randn(rows, D, dtype=dtype), torch.randn(4 * D, D, dtype=dtype)
    tokens = torch.randn(rows, D, dtype=dtype)
    small = torch.randn(16, dtype=dtype)
    side, scale = config.model.patch_size, get_task(task).scale
    x = torch.rand(config.batch_size, 3, side, side) * 255
    target = torch.rand(config.batch_size, 3, side * scale, side * scale) * 255
    step = TrainStep(initial_model(config), config, DistInfo(), degrade)
    calls: list[tuple[Callable[[], object], int]] = [
        (lambda: a @ b.t(), 20), (lambda: tokens + tokens, 200), (lambda: small + small, 2000),
        (lambda: step(x, target, task, 1e-4), 1),
    ]  # fmt: skip
    rounds: list[list[float]] = [[] for _ in calls]
    for i in range(_ROUNDS + 1):
        for (call, times), found in zip(calls, rounds, strict=True):
            took = _seconds(lambda call=call, times=times: [call() for _ in range(times)]) / times
            if i:  # the first round warms up
                found.append(took)
    gemm, add, launch, seconds = (statistics.median(found) for found in rounds)
    name = str(dtype).removeprefix("torch.")
    flops = {name: 2 * rows * D * 4 * D / gemm}
    return Device("CPU", None, 16 << 30, 3 * tokens.nbytes / add, flops, {"gemm": 1.0}, launch), seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; write it where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.count.cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for cpu.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ["IPT_FAST_IMPL"] = "patch_attention=cpu"  # made of PyTorch's operations, so that they are counted
    rows = []
    for preset, batch_size, precision in _CASES:
        config = recipe(preset, [f"batch_size={batch_size}", f"precision={precision}", "recompute=off"])
        device, seconds = measured(config, "sr2", torch.bfloat16 if precision == "bf16" else torch.float32)
        kinds = seconds_by_kind(trace_step(config, "sr2", device), device)
        predicted = sum(kinds.values())
        rate = next(iter(device.flops.values()))
        rows.append([
            f"{preset}, {precision}", str(batch_size), f"{rate / 1e9:.0f}", f"{device.bandwidth / 1e9:.1f}",
            f"{predicted:.3f}", f"{seconds:.3f}", f"{predicted / seconds:.2f}",
        ])  # fmt: skip
    print_table("one thread of this CPU", _COLUMNS, rows, _COLUMNS[1:])
    if args.out:
        text = f"# The prediction on a CPU\n\n`python -m bench.count.cpu`, task sr2, one thread. {_NOTE}\n\n"
        (args.out / "cpu.md").write_text(text + markdown_table(_COLUMNS, rows, _COLUMNS[1:]))
    return 0


_NOTE = (
    "Rates are of one GEMM and one addition of the network's own sizes, and of a small addition; medians of the "
    "process's time, in turns with the steps; the machine had other work. Convolutions are taken to reach half of the "
    "GEMM's rate."
)

if __name__ == "__main__":
    sys.exit(main())
