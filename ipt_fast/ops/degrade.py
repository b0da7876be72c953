"""From clean crops to (input, target) of a task, on the device where the crops lie: bicubic shrinking, noise, rain."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from ipt_fast.degradations.bicubic import resize_planes
from ipt_fast.degradations.noise import add_noise
from ipt_fast.degradations.rain import add_rain, rain_layers
from ipt_fast.ops._backend import choose
from ipt_fast.tasks import Task, get_task

_OP = "degrade"
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
        impl: backend, see ``backend_status``; None chooses.

    Returns:
        (input, target): float32, 0..255, RGB, on the device of ``clean``.

    Raises:
        TypeError: ``clean`` is no uint8 tensor.
        ValueError: wrong shape, seeds or margin, an unknown task, or one without a synthetic degradation.
        RuntimeError: the backend asked for cannot serve the call.
    """
    task = get_task(task)
    _check(clean, task, seeds, margin, rain)
    choose(_OP, impl, backend_status(clean.device))
    if seeds is None and task.kind != "sr":
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(-(2**63), 2**63 - 1, (len(clean),), generator=generator, device=device)
    if seeds is None:
        seeds = torch.zeros(len(clean), dtype=torch.int64)
    return degrade_reference(clean, task, seeds.to(clean.device, non_blocking=True), margin, rain)


def backend_status(device: torch.device | str) -> dict[str, str | None]:
    """Backend -> None where it can serve ``device``, otherwise the reason why not."""
    return {"eager": None}


__all__ = ["Rain", "backend_status", "degrade", "degrade_reference"]
