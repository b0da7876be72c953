"""Training steps on the device: skipped where a number is infinite, resumed to the bit, never waiting, recorded or not.

The steps are those of ``train.py``: degradation, forward, losses, backward, Adam, loss scale.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.proof.check import Row, Setting
from ipt_fast.data import SR_MARGIN, Batch
from ipt_fast.engine.config import TrainConfig, apply_changes, recipe
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.graphs import StepGraphs
from ipt_fast.engine.precision import LossScale
from ipt_fast.engine.step import StepResult, TrainStep
from ipt_fast.model import IPT
from ipt_fast.ops import degrade
from ipt_fast.tasks import get_task

_STEPS, _RESUMED, _BAD = 20, 10, 6  # all of them; after how many a checkpoint is taken; which one meets an inf
_TASKS = ("sr2", "denoise50", "derain")
# What reads a number of the device on the host.
_READS = {Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.nonzero, Tensor.numpy}


def make_config(setting: Setting, precision: str, *changes: str) -> TrainConfig:
    """Return the recipe of "base", for a small network if small, in a precision: bf16, fp16, or fp32."""
    batch = 2 if setting.small else 16
    given = [f"precision={precision}", f"batch_size={batch}", "warmup_steps=0", *changes]
    return replace(apply_changes(recipe("base"), given), model=setting.network)


def make_step(config: TrainConfig, setting: Setting) -> TrainStep:
    """Return a fresh step; always the same. On a CPU float32 with a loss scale stands in for float16."""
    torch.manual_seed(0)
    step = TrainStep(IPT(config.model).to(setting.device), config, DistInfo(device=setting.device), degrade)
    if setting.device.type == "cpu" and config.precision == "fp32":
        step.scale = LossScale(True, setting.device, start=2.0**16)
    return step


def make_batch(config: TrainConfig, number: int) -> Batch:
    """Return crops of noise that depend on the number alone."""
    task, B = _TASKS[number % len(_TASKS)], config.batch_size
    scale = get_task(task).scale
    side = (config.model.patch_size + (2 * SR_MARGIN if scale > 1 else 0)) * scale
    crops = torch.randint(256, (B, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    return Batch(crops, None, task, torch.arange(B) + number * B, 0, number)


def prepare(step: TrainStep, number: int, bad: int | None = None) -> tuple[Tensor, Tensor, str]:
    """Return input, target and task of a step; batch ``bad`` holds an inf."""
    batch = make_batch(step.config, number)
    x, target = step.prepare(batch)
    if number == bad:
        x = x.clone()
        x[0, 0, 0, 0] = torch.inf
    return x, target, batch.task


def run(step: TrainStep, numbers: range, bad: int | None = None) -> list[StepResult]:
    """Take steps and return what each said."""
    return [step(*prepare(step, n, bad), step.config.lr).read() for n in numbers]


def weights(step: TrainStep) -> dict[str, Tensor]:
    """Return copies of the network's tensors."""
    return {name: value.detach().clone() for name, value in step.model.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that differ in a bit."""
    return [name for name in a if not torch.equal(a[name], b[name])]


def precisions(setting: Setting) -> tuple[str, ...]:
    """Return bf16 and the precision with a loss scale, of those that the device has."""
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    return tuple(names[dtype] for dtype in setting.dtypes)


@contextmanager
def repeatable() -> Iterator[None]:
    """Let cuDNN and cuBLAS take only algorithms that give the same bits each time."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def check(setting: Setting) -> Iterator[Row]:
    """Yield rows: finite losses, a skipped step that changes nothing, the loss scale, and a resumed run's bits."""
    for precision in precisions(setting):
        config = make_config(setting, precision, "graphs=off")
        with repeatable():
            step = make_step(config, setting)
            results = run(step, range(_BAD))
            before, scale = weights(step), float(step.scale.factor)
            results += run(step, range(_BAD, _BAD + 1), bad=_BAD)
            changed, after = differing(before, weights(step)), float(step.scale.factor)
            results += run(step, range(_BAD + 1, _RESUMED))
            checkpoint = io.BytesIO()
            torch.save(step.state_dict(), checkpoint)
            results += run(step, range(_RESUMED, _STEPS))
            resumed = make_step(config, setting)
            checkpoint.seek(0)
            resumed.load_state_dict(torch.load(checkpoint, map_location=setting.device))
            again = run(resumed, range(_RESUMED, _STEPS))
        yield from _rows(precision, results, changed, (scale, after), step.scale.enabled)
        apart, same = differing(weights(step), weights(resumed)), results[_RESUMED:] == again
        found = "the same losses and weights to the bit" if same and not apart else f"{len(apart)} tensors differ"
        yield Row(f"{precision}: resumed after {_RESUMED} steps", same and not apart, found)


def _rows(
    precision: str, results: list[StepResult], changed: list[str], scale: tuple[float, float], scaled: bool
) -> Iterator[Row]:
    skipped = [number for number, result in enumerate(results) if result.skipped]
    losses = f"loss {results[0].total:.2f} to {results[-1].total:.2f}, skipped: {skipped}"
    yield Row(f"{precision}: {len(results)} steps, the one with an inf is skipped", skipped == [_BAD], losses)
    found = f"{len(changed)} tensors changed" if changed else "all weights as before"
    yield Row(f"{precision}: a skipped step changes no weight", not changed, found)
    wanted = scale[0] / 2 if scaled else scale[0]
    rescaled = results[_BAD].rescaled == scaled and scale[1] == wanted
    yield Row(f"{precision}: loss scale after it", rescaled, f"{scale[0]:,.0f} to {scale[1]:,.0f}")


class _Reads(TorchFunctionMode):
    """Raises where a number is read on the host, as CUDA's own mode does; works on any device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _READS:
            raise RuntimeError(f"the host waits: {function.__name__}")
        return function(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Let whatever makes the host wait for the device raise."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _Reads():
            yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def check_waits(setting: Setting) -> Iterator[Row]:
    """Yield a row for each precision and kind of step: three warm steps in which the host may not wait."""
    for precision in precisions(setting):
        for graphs in ("off", "auto") if setting.device.type == "cuda" else ("off",):
            step = make_step(make_config(setting, precision, f"graphs={graphs}"), setting)
            for number in range(4 * len(_TASKS)):  # compiles, makes Adam's state, records the graphs
                step(*prepare(step, number), step.config.lr)
            case = f"{precision}, {'recorded' if graphs == 'auto' else 'launched one by one'}: no step waits"
            prepared = [prepare(step, number) for number in range(len(_TASKS))]
            try:
                with no_waiting(setting.device):
                    outcomes = [step(*batch, step.config.lr) for batch in prepared]
                yield Row(case, True, f"{len(outcomes)} steps, loss {outcomes[-1].read().total:.2f}")
            except RuntimeError as error:
                yield Row(case, False, str(error).splitlines()[0])


def check_graphs(setting: Setting) -> Iterator[Row]:
    """Yield a row for each precision: steps from a recording give the losses and weights of those launched one by one.

    On a CPU, where nothing is recorded, the steps read the buffers that a recording would read.
    """
    for precision in precisions(setting):
        with repeatable():
            on_gpu = setting.device.type == "cuda"
            # A learning rate that float32, in which a recording reads it, holds exactly.
            options = [(f"lr={2.0**-12}", f"graphs={graphs}") for graphs in ("off", "on" if on_gpu else "off")]
            eager, recorded = (make_step(make_config(setting, precision, *changes), setting) for changes in options)
            if not on_gpu:
                recorded.graphs = StepGraphs(recorded._compute, setting.device)
            count = 3 * len(_TASKS) if setting.small else 6 * len(_TASKS)
            results = [run(step, range(count), bad=_BAD) for step in (eager, recorded)]
        apart = differing(weights(eager), weights(recorded))
        yield _same_steps(f"{precision}: {count} steps, recorded and not", *results, apart)


def _same_steps(case: str, wanted: list[StepResult], found: list[StepResult], apart: list[str]) -> Row:
    same: Callable[[StepResult, StepResult], bool] = lambda a, b: (  # noqa: E731
        (a.skipped, a.rescaled) == (b.skipped, b.rescaled) and (a.skipped or a.total == b.total)
    )
    first = next((n for n, (a, b) in enumerate(zip(wanted, found, strict=True)) if not same(a, b)), None)
    if first is None and not apart:
        return Row(case, True, "the same losses and weights to the bit")
    at = "" if first is None else f"step {first}: loss {found[first].total:.6f} for {wanted[first].total:.6f}; "
    return Row(case, False, f"{at}{len(apart)} tensors differ")
