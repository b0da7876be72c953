"""From clean crops to (input, target) of a task, on the device where the crops lie: bicubic shrinking, noise, rain."""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ipt_fast.degradations.bicubic import resize_planes
from ipt_fast.degradations.noise import add_noise
from ipt_fast.degradations.rain import add_rain, rain_layers
from ipt_fast.ops._common import check_integer, check_tensor, check_type
from ipt_fast.ops._registry import Backend, Backends, constant_to_compilers, overridable, triton_missing
from ipt_fast.tasks import Task, get_task

_OP = "degrade"
_TRITON_SCALES = (2, 3, 4)
# Makes rain layers float32 [B, height, width] from seeds int64 [B], height and width, on the seeds' device.
Rain = Callable[[Tensor, int, int], Tensor]


class _Call(NamedTuple):
    """A call, as far as it decides about backends."""

    device: str
    scale: int = 1


def degrade_reference(
    clean: Tensor, seeds: Tensor, layers: Tensor | None, kind: str, scale: int, sigma: float, margin: int
) -> tuple[Tensor, Tensor]:
    """Return (input, target) in plain PyTorch on any device; the oracle of every backend, and the CPU's own."""
    if kind == "sr":
        B, C, H, W = clean.shape
        shrunk = resize_planes(clean.reshape(B * C, H, W), Fraction(1, scale), cut=margin)  # [B C, h, w]
        edge = margin * scale
        target = clean[..., edge : H - edge, edge : W - edge].to(torch.float32, memory_format=torch.contiguous_format)
        return shrunk.reshape(B, C, *shrunk.shape[1:]).float(), target
    target = clean.to(torch.float32, memory_format=torch.contiguous_format)
    if kind == "denoise":
        return add_noise(clean, seeds, sigma), target
    layers = rain_layers(seeds, *clean.shape[2:]) if layers is None else layers  # [B, H, W]
    return add_rain(target, layers.float()), target


# Backends take what the task is made of; neither clean nor seeds have gradients.


def _triton(clean, seeds, layers, kind, scale, sigma, margin):
    from ipt_fast.kernels import degrade as kernels

    with torch.cuda.device_of(clean):
        if kind == "sr":
            return kernels.shrink(clean, scale, margin)
        if kind == "denoise":
            return kernels.add_noise(clean, seeds.contiguous(), sigma)
        if layers is not None:
            layers = layers.float().expand(len(clean), *clean.shape[2:]).contiguous()  # [B, H, W]
        return kernels.add_rain(clean, seeds.contiguous(), layers)


def _triton_reason(call: _Call) -> str | None:
    if reason := triton_missing(call.device, least=(7, 0)):  # no tensor cores
        return reason
    if call.scale not in (1, *_TRITON_SCALES):
        return f"has kernels for the scales {', '.join(map(str, _TRITON_SCALES))} (got {call.scale})"
    return None


def _preference(call: _Call) -> list[str]:
    # On a CPU Triton is its interpreter.
    return ["triton", "eager"] if torch.device(call.device).type == "cuda" else ["eager", "triton"]


BACKENDS = Backends(
    _OP, _Call, (Backend("triton", _triton, None, _triton_reason), Backend("eager", degrade_reference)), _preference
)


# Dispatcher registration


def _fake(clean, seeds, layers, kind, scale, sigma, margin, impl):
    B, C, H, W = clean.shape
    h, w = (H // scale - 2 * margin, W // scale - 2 * margin) if kind == "sr" else (H, W)
    target = clean.new_empty((B, C, h * scale, w * scale), dtype=torch.float32)
    return clean.new_empty((B, C, h, w), dtype=torch.float32), target


_forward = BACKENDS.define_forward(
    "(Tensor clean, Tensor seeds, Tensor? layers, str kind, int scale, float sigma, int margin, str impl)"
    " -> (Tensor input, Tensor target)",
    _fake,
)


def _check(
    clean: Tensor, task: Task, generator: torch.Generator | None, seeds: Tensor | None, margin: int, rain: Rain | None
) -> None:
    check_tensor(_OP, "clean", clean, (torch.uint8,), "[B, 3, H, W]")
    if clean.dim() != 4 or clean.shape[1] != 3 or 0 in clean.shape:
        raise ValueError(f"{_OP}: clean must be [B, 3, H, W] and not empty (got shape {list(clean.shape)})")
    if task.kind == "deblur":
        raise ValueError(f'{_OP}: task "{task.name}" has no synthetic degradation; it is trained on pairs of photos')
    if rain is not None and task.kind != "derain":
        raise ValueError(f'{_OP}: rain= is for the task "derain" (got "{task.name}"); leave it out')
    if rain is not None:
        check_type(_OP, "rain", rain, Callable, "a function of seeds, height and width")
    check_integer(_OP, "margin", margin, 0)
    if margin and task.kind != "sr":
        raise ValueError(f'{_OP}: margin is {margin} for the task "{task.name}"; it has to be 0, or more for sr tasks')
    sides, needed = clean.shape[2:], (2 * margin + 1) * task.scale
    if any(side % task.scale for side in sides) or min(sides) < needed:
        raise ValueError(
            f"{_OP}: {task.name} with margin {margin} needs sides that are multiples of {task.scale} and at least "
            f"{needed} pixels (got {sides[0]} x {sides[1]}); cut the crops to that"
        )
    if generator is not None:
        check_type(_OP, "generator", generator, torch.Generator, "a torch.Generator")
    if seeds is None:
        return
    check_tensor(_OP, "seeds", seeds, (torch.int64,), "[B]")
    if seeds.shape != clean.shape[:1] or (seeds.is_meta and not clean.is_meta):
        raise ValueError(
            f"{_OP}: seeds must be [B] with B={len(clean)}, one per image (got {list(seeds.shape)} on {seeds.device})"
        )


def _layers(rain: Rain, clean: Tensor, seeds: Tensor) -> Tensor:
    B, _, H, W = clean.shape
    layers = rain(seeds, H, W)
    check_tensor(_OP, "what rain returns", layers, shape="[B, H, W]")
    if layers.device != clean.device or layers.shape not in ((B, H, W), (1, H, W)):
        raise ValueError(
            f"{_OP}: what rain returns must be [{B} or 1, {H}, {W}] on {clean.device} "
            f"(got {list(layers.shape)} on {layers.device})"
        )
    return layers


_task = constant_to_compilers(lambda name: get_task(name))


@overridable
def degrade(
    clean: Tensor,
    task: str | Task,
    *,
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    margin: int = 0,
    rain: Rain | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Degrade a batch of clean crops (or whole photos) for a task.

    - ``sr2``, ``sr3``, ``sr4``: input = MATLAB's bicubic shrinking, bit for bit, whole numbers; target = the crop.
      With ``margin=2`` (the reach of the kernel) and crops that lie on the grid of the scale, the input is exactly the
      crop of the shrunk photo.
    - ``denoise<sigma>``: input = clip(clean + N(0, sigma), 0, 255), not rounded.
    - ``derain``: input = clip(clean + r, 0, 255) with a gray layer r of streaks.

    Noise and rain come from a counter-based generator with one seed per image: an image's result does not depend on
    the batch it sits in, on the rank or on the number of workers, and its top left corner not on its size.

    Args:
        clean: uint8 [B, 3, H, W] RGB on any device, any strides. For super-resolution H and W are multiples of the
            scale.
        task: name or ``Task``.
        generator: draws the seeds (one ``torch.randint`` of B numbers on the generator's device), where ``seeds`` is
            not given. Neither given: PyTorch's default CPU generator draws them.
        seeds: int64 [B], any values.
        margin: low-resolution pixels cut off each side of the input, and margin * scale off each side of the target;
            super-resolution only.
        rain: for ``derain``, what makes the layers: None for the own generator, or a
            ``ipt_fast.degradations.streak_folder.StreakFolder``.
        impl: backend, see ``backend_status``; None chooses. All give the same bits for super-resolution, the same noise
            and rain to rounding of log, cos and exp (2e-3; a pixel on the edge of a streak may fall on its other side).

    Returns:
        (input, target): float32, 0..255, RGB, on the device of ``clean``.

    Raises:
        TypeError: ``clean`` is no uint8 tensor, or another argument has a wrong type.
        ValueError: wrong shape, seeds or margin, an unknown task, or one without a synthetic degradation.
        RuntimeError: the backend asked for cannot serve the call.
    """
    check_type(_OP, "task", task, (str, Task), "a name or a Task")
    task = _task(task) if isinstance(task, str) else task
    _check(clean, task, generator, seeds, margin, rain)
    backend = BACKENDS.resolve(impl, _Call(str(clean.device), task.scale))
    if task.kind == "sr":
        seeds = clean.new_empty(0, dtype=torch.int64)  # nothing is drawn, and nothing need be sent to the device
    elif seeds is None:
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(-(2**63), 2**63 - 1, (len(clean),), generator=generator, device=device)
    seeds = seeds.to(clean.device, non_blocking=True)
    layers = None if rain is None else _layers(rain, clean, seeds)
    return _forward(clean, seeds, layers, task.kind, task.scale, task.sigma, margin, backend.name)


backend_status = BACKENDS.status
__all__ = ["Rain", "backend_status", "degrade", "degrade_reference"]
