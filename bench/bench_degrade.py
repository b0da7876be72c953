"""How near to reading each crop once and writing input and target once does degrading a batch come?"""

import functools

import pytest
import torch

from bench.case import Work
from ipt_fast.ops.degrade import backend_status, degrade
from ipt_fast.tasks import get_task

SIDE = 48  # of the input, as in pre-training
MARGIN = 2  # of super-resolution: the reach of the bicubic kernel, low-resolution pixels


@pytest.mark.parametrize("task", ["sr2", "sr3", "sr4", "derain", "denoise50"])
@pytest.mark.parametrize("contender", ["eager", "triton"])
def bench_batch(measure, device, small, task, contender):
    if reason := backend_status(device)[contender]:
        pytest.skip(f"{contender} {reason}")
    B = 16 if small else 256
    kind, scale = get_task(task).kind, get_task(task).scale
    margin = MARGIN if kind == "sr" else 0
    side = (SIDE + 2 * margin) * scale
    clean = torch.randint(0, 256, (B, 3, side, side), dtype=torch.uint8, device=device)
    seeds = torch.arange(B, device=device)
    call = functools.partial(degrade, clean, task, seeds=seeds, margin=margin, impl=contender)
    work = Work(bytes=clean.nbytes + sum(x.nbytes for x in call()))
    capture = not (contender == "eager" and kind == "derain")  # it counts streaks on the host: no graph can hold that
    measure(call, "degrade", contender, f"{task} {B} crops {side}x{side}", "float32", work, capture=capture)
