"""From clean crops to (input, target) of a task, on the device where the crops lie: bicubic shrinking, noise, rain."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from ipt_fast.degradations.bicubic import resize_planes
from ipt_fast.degradations.noise import add_noise
from ipt_fast.degradations.rain import add_rain, rain_layers
from ipt_fast.ops._registry import choose, constant_to_compilers, triton_missing
from ipt_fast.tasks import Task, get_task

_OP = "degrade"
_TRITON_SCALES = (2, 3, 4)
# Makes rain layers float32 [B, height, width] from seeds int64 [B], height and width, on the seeds' device.
Rain = Callable[[Tensor, int, int], Tensor]


def degrade_reference(
    clean: Tensor, task: Task, seeds: Tensor, margin: int = 0, rain: Rain | None = None
) -> tuple[Tensor, Tensor]:
    """(input, target) in plain PyTorch on any device; the oracle of every backend, and the CPU's own."""
    if task.kind == "sr":
        B, C, H, W = clean.shape
        shrunk = resize_planes(clean.reshape(B * C, H, W), Fraction(1, task.scale), cut=margin)  # [B C, h, w]
        edge = margin * task.scale
        return shrunk.reshape(B, C, *shrunk.shape[1:]), clean[..., edge : H - edge, edge : W - edge].float()
    if task.kind == "denoise":
        return add_noise(clean, seeds, task.sigma), clean.float()
    layers = (rain or rain_layers)(seeds, *clean.shape[2:])  # [B, H, W]
    return add_rain(clean, layers), clean.float()


# Dispatcher registration of the Triton kernels, one op each. Neither clean nor seeds have gradients.

_OUTPUTS = "-> (Tensor input, Tensor target)"
for _name, _arguments in (
    ("sr", "Tensor clean, int scale, int margin"),
    ("denoise", "Tensor clean, Tensor seeds, float sigma"),
    ("derain", "Tensor clean, Tensor seeds"),
    ("add_layers", "Tensor clean, Tensor layers"),
):
    torch.library.define(f"ipt_fast::{_OP}_{_name}", f"({_arguments}) {_OUTPUTS}", tags=torch.Tag.pt2_compliant_tag)


@torch.library.impl(f"ipt_fast::{_OP}_sr", "CompositeExplicitAutograd")
def _sr(clean: Tensor, scale: int, margin: int) -> tuple[Tensor, Tensor]:
    from ipt_fast.kernels.degrade import shrink

    with torch.cuda.device_of(clean):
        return shrink(clean, scale, margin)


@torch.library.impl(f"ipt_fast::{_OP}_denoise", "CompositeExplicitAutograd")
def _denoise(clean: Tensor, seeds: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    from ipt_fast.kernels.degrade import add_noise

    with torch.cuda.device_of(clean):
        return add_noise(clean, seeds.contiguous(), sigma)


@torch.library.impl(f"ipt_fast::{_OP}_derain", "CompositeExplicitAutograd")
def _derain(clean: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    from ipt_fast.kernels.degrade import add_rain

    with torch.cuda.device_of(clean):
        return add_rain(clean, seeds.contiguous())


@torch.library.impl(f"ipt_fast::{_OP}_add_layers", "CompositeExplicitAutograd")
def _add_layers(clean: Tensor, layers: Tensor) -> tuple[Tensor, Tensor]:
    from ipt_fast.kernels.degrade import add_layers

    B, _, H, W = clean.shape
    with torch.cuda.device_of(clean):
        return add_layers(clean, layers.float().expand(B, H, W).contiguous())


@torch.library.register_fake(f"ipt_fast::{_OP}_sr")
def _sr_fake(clean, scale, margin):
    B, C, H, W = clean.shape
    h, w = H // scale - 2 * margin, W // scale - 2 * margin
    target = clean.new_empty((B, C, h * scale, w * scale), dtype=torch.float32)
    return clean.new_empty((B, C, h, w), dtype=torch.float32), target


@torch.library.register_fake(f"ipt_fast::{_OP}_denoise")
@torch.library.register_fake(f"ipt_fast::{_OP}_derain")
@torch.library.register_fake(f"ipt_fast::{_OP}_add_layers")
def _same_size_fake(clean, *_):
    return clean.new_empty(clean.shape, dtype=torch.float32), clean.new_empty(clean.shape, dtype=torch.float32)


def _triton(clean: Tensor, task: Task, seeds: Tensor, margin: int, rain: Rain | None) -> tuple[Tensor, Tensor]:
    ops = torch.ops.ipt_fast
    if task.kind == "sr":
        return ops.degrade_sr(clean, task.scale, margin)
    if task.kind == "denoise":
        return ops.degrade_denoise(clean, seeds, task.sigma)
    if rain is None:
        return ops.degrade_derain(clean, seeds)
    return ops.degrade_add_layers(clean, rain(seeds, *clean.shape[2:]))


def _why_not(device: str, scale: int = 1) -> dict[str, str | None]:
    """Every backend in the order of automatic choice on ``device`` -> None or why it cannot serve that scale."""
    triton = triton_missing(device)
    if triton is None and scale not in (1, *_TRITON_SCALES):
        triton = f"has kernels for the scales {', '.join(map(str, _TRITON_SCALES))} (got {scale})"
    # On a CPU it is Triton's interpreter.
    return {"triton": triton, "eager": None} if device.startswith("cuda") else {"eager": None, "triton": triton}


def backend_status(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """Every backend in the order of automatic choice on ``device`` -> None, or why this machine cannot run it."""
    return _why_not(str(device))


@constant_to_compilers
def _choose(impl: str | None, device: str, scale: int) -> str:
    return choose(_OP, impl, _why_not(device, scale))


def _check(clean: Tensor, task: Task, seeds: Tensor | None, margin: int, rain: Rain | None) -> None:
    if not isinstance(clean, Tensor) or clean.dtype != torch.uint8:
        kind = clean.dtype if isinstance(clean, Tensor) else type(clean).__name__
        raise TypeError(f"{_OP}: clean must be a uint8 tensor [B, 3, H, W] (got {kind})")
    if clean.dim() != 4 or clean.shape[1] != 3 or 0 in clean.shape:
        raise ValueError(f"{_OP}: clean must be [B, 3, H, W] and not empty (got shape {list(clean.shape)})")
    if task.kind == "deblur":
        raise ValueError(f'{_OP}: task "{task.name}" has no synthetic degradation; it is trained on pairs of photos')
    if rain is not None and task.kind != "derain":
        raise ValueError(f'{_OP}: rain= is for the task "derain" (got "{task.name}"); leave it out')
    if margin < 0 or (margin and task.kind != "sr"):
        raise ValueError(f'{_OP}: margin is {margin} for the task "{task.name}"; it has to be 0, or more for sr tasks')
    sides, needed = clean.shape[2:], (2 * margin + 1) * task.scale
    if any(side % task.scale for side in sides) or min(sides) < needed:
        raise ValueError(
            f"{_OP}: {task.name} with margin {margin} needs sides that are multiples of {task.scale} and at least "
            f"{needed} pixels (got {sides[0]} x {sides[1]}); cut the crops to that"
        )
    if seeds is not None and (seeds.dtype != torch.int64 or seeds.shape != clean.shape[:1]):
        raise ValueError(
            f"{_OP}: seeds must be int64 [B] with B={len(clean)}, one per image (got {seeds.dtype} {list(seeds.shape)})"
        )


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
    """Spoil a batch of clean crops (or whole photos) for a task.

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
        TypeError: ``clean`` is no uint8 tensor.
        ValueError: wrong shape, seeds or margin, an unknown task, or one without a synthetic degradation.
        RuntimeError: the backend asked for cannot serve the call.
    """
    task = get_task(task)
    _check(clean, task, seeds, margin, rain)
    backend = _choose(impl, str(clean.device), task.scale)
    if task.kind == "sr":
        seeds = clean.new_empty(0, dtype=torch.int64)  # nothing is drawn, and nothing need be sent to the device
    elif seeds is None:
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(-(2**63), 2**63 - 1, (len(clean),), generator=generator, device=device)
    make = _triton if backend == "triton" else degrade_reference
    return make(clean, task, seeds.to(clean.device, non_blocking=True), margin, rain)


__all__ = ["Rain", "backend_status", "degrade", "degrade_reference"]
