"""Patches a second of a training step, ours and the official network's, on tensors that are there: no loader.

The official network is PyTorch's own modules (bench/baselines), by autocast, with fused Adam and, which it has not, our
contrastive loss: what differs is the network. A step is forward, losses, backward and optimizer.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.baselines.plain_ipt import plain_copy
from bench.case import wait
from bench.ceilings import measure_ceilings
from bench.proof.check import Row, Setting
from bench.proof.steps import make_config, make_step
from ipt_fast.engine.config import TrainConfig
from ipt_fast.engine.flops import step_flops
from ipt_fast.engine.precision import matmul_arithmetic
from ipt_fast.losses import pretrain_loss
from ipt_fast.model import IPT

_TASK = "sr2"
OURS, ONE_BY_ONE = "ipt_fast", "ipt_fast, launched one by one"
OFFICIAL, COMPILED = "official network", "official network, torch.compile"
# What tells most first; compiling takes longest and comes last.
_LARGE = [(OURS, 64), (OFFICIAL, 64), (OURS, 128), (OURS, 256), (OURS, 8), (OFFICIAL, 8), (OFFICIAL, 128),
          (ONE_BY_ONE, 64), (ONE_BY_ONE, 8), (COMPILED, 64), (OFFICIAL, 256), (COMPILED, 8)]  # fmt: skip
_SMALL = [(OURS, 2), (OFFICIAL, 2), (OURS, 4), (OFFICIAL, 4), (COMPILED, 2)]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def our_step(setting: Setting, config: TrainConfig, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Return a call of ``train.py``'s step that gives its numbers, the loss first."""
    step = make_step(config, setting)
    return lambda: step(x, target, _TASK, config.lr).numbers


def official_step(
    setting: Setting, config: TrainConfig, x: Tensor, target: Tensor, compiled: bool
) -> Callable[[], Tensor]:
    """Return a call of a step as people write it, that gives the loss."""
    torch.manual_seed(0)
    network = plain_copy(IPT(config.model).to(setting.device)).train()
    forward = torch.compile(network) if compiled else network
    on_gpu = setting.device.type == "cuda"
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], config.lr, fused=on_gpu)
    dtype = _DTYPES[config.precision]
    scaler = torch.amp.GradScaler(setting.device.type, enabled=dtype == torch.float16)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(setting.device.type, dtype):
            y, feats = forward(x, _TASK, return_features=True)
            loss = pretrain_loss(y.float(), target, feats, config.lam).total
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()[None]

    return step


def milliseconds(step: Callable[[], Tensor], setting: Setting) -> float:
    """Return the median over rounds of a step's time; the host waits for the device once a round."""
    rounds, steps = (2, 1) if setting.small else (5, 4)
    times = []
    for _ in range(rounds):
        wait(setting.device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait(setting.device)
        times.append((time.perf_counter() - start) / steps)
    return 1e3 * statistics.median(times)


def busy_share(step: Callable[[], Tensor], device: torch.device) -> float | None:
    """Return the time of all kernels as a share of the steps' own, from a trace; None on a CPU."""
    if device.type != "cuda":
        return None
    wait(device)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        start = time.perf_counter()
        for _ in range(3):
            step()
        wait(device)
        seconds = time.perf_counter() - start
    return sum(event.self_device_time_total for event in trace.key_averages()) * 1e-6 / seconds


def measure(setting: Setting, contender: str, B: int, peak: float | None) -> Row:
    """Measure one contender at one batch size."""
    case, precision = f"{contender}, B={B}", "bf16" if torch.bfloat16 in setting.dtypes else "fp16"
    if contender == COMPILED and setting.device.type == "cpu":
        return Row(case, None, "compiling for a CPU takes longer than all of this part")
    graphs = "auto" if contender == OURS else "off"
    config = make_config(setting, precision, f"batch_size={B}", f"graphs={graphs}")
    S, kind = config.model.patch_size, {"device": setting.device}
    x, target = torch.rand(B, 3, S, S, **kind) * 255, torch.rand(B, 3, 2 * S, 2 * S, **kind) * 255
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if contender in (OURS, ONE_BY_ONE):
        step = our_step(setting, config, x, target)
    else:
        step = official_step(setting, config, x, target, contender == COMPILED)
    try:
        with matmul_arithmetic(tf32=False):
            for _ in range(1 if setting.small else 5):
                loss = float(step()[0])
            ms = milliseconds(step, setting)
            busy = busy_share(step, setting.device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Row(case, None, "does not fit into the GPU's memory")
    rate = 1e3 * B / ms
    values: dict[str, float | str] = {"contender": contender, "B": B, "patches_per_s": rate, "step_ms": ms}
    if peak:
        values["mfu"] = rate * step_flops(config.model, _TASK, 1) / peak
    if busy is not None:
        values["busy"] = busy
        values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return Row(case, loss == loss, f"{rate:,.1f} patches/s, {ms:,.1f} ms a step, loss {loss:.2f}", values)


def check(setting: Setting) -> Iterator[Row]:
    """Yield a row of figures for each contender and batch size, those that tell most first."""
    peak = None
    if setting.device.type == "cuda":
        rates = measure_ceilings(setting.device, 0.5).matmul_rate
        peak = rates["bfloat16" if torch.bfloat16 in setting.dtypes else "float16"]
    for contender, B in _SMALL if setting.small else _LARGE:
        torch.compiler.reset()
        yield measure(setting, contender, B, peak)
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
