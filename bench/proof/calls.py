"""One call of every kernel as the product makes it: to fill Triton's cache in many processes, or under a sanitizer.

    python -m bench.proof.calls --workers 12        at the sizes of a training, spread over processes
    python -m bench.proof.calls --once              all in this process, few images

The calls are the real ones, so the cache holds exactly what they ask for afterwards.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.proof.check import Setting, short
from bench.proof.steps import make_config, make_step, precisions, prepare
from ipt_fast.ops import (
    degrade,
    ffn,
    layernorm_linear,
    patch_attention,
    patch_contrastive_loss,
    pixelshuffle_tail,
    row_contrastive_loss,
)
from ipt_fast.tasks import TASKS

_BYTES = 3 << 30  # of GPU memory, that a process may need


def attention(kind: dict, B: int, N: int, D: int, H: int, embeds: bool) -> None:
    """Call forward and backward on views of a packed projection, as an encoder or a decoder layer does."""
    q, k, v = torch.randn(B, N, 3 * D, **kind).requires_grad_().chunk(3, dim=-1)
    given = dict(zip(("q_embed", "k_embed"), torch.randn(2, N, D, **kind), strict=True)) if embeds else {}
    patch_attention(q, k, v, num_heads=H, **given).sum().backward()


def contrastive(kind: dict, B: int, N: int, D: int) -> None:
    """Call forward and backward."""
    patch_contrastive_loss(torch.randn(B, N, D, **kind).requires_grad_()).backward()


def contrastive_rows(kind: dict, pairs: int, D: int) -> None:
    """Call both losses over rows, forward and backward."""
    x, y = (torch.randn(pairs, D, **kind).requires_grad_() for _ in range(2))
    row_contrastive_loss(x, y, 1.0).backward()
    row_contrastive_loss(x, y, 1.0, -1.0, mode="sigmoid").backward()


def norms(kind: dict, B: int, N: int, D: int) -> None:
    """Call layernorm_linear and ffn, forward and backward; weights as wide as the tokens."""
    x, norm = torch.randn(B, N, D, **kind).requires_grad_(), torch.ones(2, D, device=kind["device"]).unbind()
    weights = [torch.randn(shape, **kind).requires_grad_() for shape in ((3 * D, D), (4 * D, D), (D, 4 * D))]
    layernorm_linear(x, *norm, weights[0]).sum().backward()
    ffn(x, *norm, weights[1], None, weights[2], None).sum().backward()


def tail(kind: dict, B: int, C: int, side: int, scales: tuple[int, ...]) -> None:
    """Call the fused tail, which is for inference."""
    convs = [(torch.randn(w, C, 3, 3, **kind), None) for w in [*(C * r * r for r in scales), 3]]
    with torch.no_grad():
        pixelshuffle_tail(torch.randn(B, C, side, side, **kind), convs, scales)


def degradation(device: torch.device, task: str) -> None:
    """Degrade a batch."""
    clean = torch.zeros(8, 3, 144, 144, dtype=torch.uint8, device=device)
    degrade(clean, task, seeds=torch.arange(8, device=device))


def training_step(setting: Setting, precision: str, number: int) -> None:
    """Take a step of a task; its kernels are those of any batch size."""
    step = make_step(make_config(setting, precision, "graphs=off", "batch_size=8"), setting)
    step(*prepare(step, number), step.config.lr).read()


def calls(setting: Setting, once: bool = False) -> dict[str, Callable[[], None]]:
    """Return every call by name, the longest ones first; ``once``: few images and no steps."""
    device, N, D, H, C = setting.device, *((16, 48, 4, 8) if setting.small else (256, 576, 12, 64))
    found: dict[str, Callable[[], None]] = {}
    if not once:
        for precision in precisions(setting):
            for number in range(1 if setting.small else 3):
                name = f"step {number} {precision}"
                found[name] = functools.partial(training_step, setting, precision, number)
    for dtype in setting.dtypes:
        kind, end = {"device": device, "dtype": dtype}, f" {short(dtype)}"
        for B in (2,) if once or setting.small else (64, 8):
            found[f"contrastive B={B}{end}"] = functools.partial(contrastive, kind, B, N, D)
        B = 2 if once or setting.small else 64
        found[f"contrastive rows{end}"] = functools.partial(contrastive_rows, kind, 16 * B, 512)
        for embeds in (True, False):
            found[f"attention{' embeds' * embeds}{end}"] = functools.partial(attention, kind, B, N, D, H, embeds)
        if not setting.small:
            found[f"attention N=1024{end}"] = functools.partial(attention, kind, 2, 4 * N, D, H, True)
        found[f"norms{end}"] = functools.partial(norms, kind, B, N, D)
        for scales in ((2,), (3,), (2, 2)):
            found[f"tail {scales}{end}"] = functools.partial(tail, kind, B, C, 12 if once else 48, scales)
    for task in TASKS:
        found[f"degrade {task}"] = functools.partial(degradation, device, task)
    return found


def call_one(device: str, small: bool, name: str) -> tuple[str, float, str]:
    """Make one call; return its name, its seconds, and what it raised, or nothing."""
    start = time.perf_counter()
    try:
        calls(Setting(torch.device(device), small))[name]()
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # of any kind: one that does not compile must not stop the others
        return name, time.perf_counter() - start, f"{type(error).__name__}: {error}"[:300]
    return name, time.perf_counter() - start, ""


def warm(setting: Setting, workers: int) -> list[tuple[str, float, str]]:
    """Make all calls in ``workers`` processes at most; return what ``call_one`` does."""
    names = list(calls(setting))
    job = functools.partial(call_one, setting.device.type, setting.small)
    with ProcessPoolExecutor(min(workers, len(names)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(job, names))


def most_workers(setting: Setting, workers: int) -> int:
    """Return how many processes the machine has cores and GPU memory for, of those that are asked for."""
    cores = len(os.sched_getaffinity(0))
    if setting.device.type != "cuda":
        return min(workers, cores)
    free = torch.cuda.mem_get_info(setting.device)[0]
    return max(1, min(workers, cores, free // _BYTES))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a call failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.proof.calls", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--once", action="store_true", help="in this process, few images")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    setting = Setting(torch.device(args.device), args.small)
    if args.once:
        for name, call in calls(setting, once=True).items():
            call()
            print(f"called: {name}", flush=True)
        if args.device == "cuda":
            torch.cuda.synchronize()
        return 0
    done = warm(setting, most_workers(setting, args.workers))
    for name, seconds, error in done:
        print(f"{seconds:6.1f} s  {name}  {error}")
    if args.json:
        args.json.write_text(json.dumps(done) + "\n")
    return 1 if any(error for *_, error in done) else 0


if __name__ == "__main__":
    sys.exit(main())
