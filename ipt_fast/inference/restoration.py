"""Images of any size through a network that takes squares of one size."""

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.checkpoint import PRETRAINED, load_checkpoint
from ipt_fast.inference.images import given, several_given
from ipt_fast.inference.linear import EIGHT_BITS
from ipt_fast.inference.prepare import DTYPES, PreparedIPT, prepare_for_inference
from ipt_fast.model import IPT
from ipt_fast.tasks import get_task
from ipt_fast.tiling.strips import Layout, Source, gathered, quantised, restored_strips
from ipt_fast.tiling.whole import fetched, fits_whole, moved, restored_whole
from ipt_fast.tiling.windows import Stitch

_log = logging.getLogger(__name__)
_CPU_BATCH, _GPU_BATCH = 16, 128


@checked
def restore(
    model: Any,
    image: Any,
    task: str,
    overlap: int = 10,
    stitch: Stitch = "blend",
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    *,
    self_ensemble: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Any:
    """Restore an image of any size from 1x1 up, a batch of images of one size, or a list of images of many.

    The image is cut into overlapping windows of the network's input size; images smaller than one window are mirrored.

    Args:
        model: an ``IPT``, or what ``prepare_for_inference`` made of one, which for many images saves preparing it
            for each. It runs on the device where it is. None is the network that comes with the package, read from its
            file at every call; it runs where a tensor is, otherwise on the CPU. (Any other network with ``config``,
            ``task_index`` and ``forward(x, task)`` is called as it is.)
        image: what comes out is of the same kind:
            a path or a PIL image of any mode -> PIL image of 8 bits, upright (RGB, or with the alpha channel that it
            had), its ``info`` with the colour profile and the EXIF data;
            uint8 or uint16 [H, W, 3] or [H, W] array -> array [rH, rW, 3] of that dtype;
            float or uint8 tensor [B, 3, H, W] or [3, H, W], RGB 0..255 -> float32 tensor, not clamped, not rounded,
            on the device of the image;
            a list or tuple of such images (no batches) -> a list of as many results. Windows of all fill batches
            together, for small images on a device that wants large batches; what an image becomes differs by rounding
            from what it becomes alone. Images and results are held in memory, windows of one image and one batch.
        task: name of a task of the network; it gives the scale r.
        overlap: least overlap of neighbouring windows in input pixels, for ``stitch="blend"``; less is faster.
        stitch: "blend" fades windows into each other; "official" is the reference code's own stitching, with windows
            at every quarter of their size (8 times the work).
        batch_size: windows at once; None takes what memory allows. Halved, with a warning, where memory runs out.
        dtype: torch.float32, bfloat16 or float16: the network runs in it, or its linear layers in int8 or
            float8_e4m3fn, as ``prepare_for_inference`` says. None leaves the network's own; a prepared network has no
            other.
        self_ensemble: mean over the 8 flips and transposes ("+" in the paper's tables); 8 times the work.
        progress: called with each share of the work that is done; they add up to 1.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an unknown task, stitch or dtype, an overlap or batch size out of range, or an image of another
            shape.
        OSError: the path cannot be read.
        CheckpointError: the file that comes with the package has been changed.
    """
    if model is None:
        model = load_checkpoint(PRETRAINED)
        _log.info("restore: no network given, so the one that comes with the package restores")
        first = image[0] if isinstance(image, (list, tuple)) and image else image
        if isinstance(first, Tensor) and not first.is_meta:
            model = model.to(first.device)
    if not hasattr(model, "task_index") or not hasattr(model, "config"):
        raise TypeError(f"restore: model must be an IPT, a prepared one, or None (got {type(model).__name__})")
    several = isinstance(image, (list, tuple))
    images = several_given(image) if several else [given(image)]
    model.task_index(task)
    size = model.config.patch_size
    if not 0 <= overlap < size:
        raise ValueError(f"restore: overlap must be 0 to {size - 1} pixels for this network, got {overlap}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"restore: batch_size must be at least 1, got {batch_size}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"restore: dtype must be torch.float32, bfloat16, float16, int8 or float8_e4m3fn, got {dtype}")
    if dtype in EIGHT_BITS and not isinstance(model, (IPT, PreparedIPT)):
        raise ValueError(f"restore: dtype={dtype} needs an IPT (got {type(model).__name__}); leave dtype out")
    if isinstance(model, PreparedIPT) and dtype not in (None, model.dtype):
        raise ValueError(f"restore: this network is prepared for {model.dtype}, got dtype={dtype}; prepare it for that")
    if isinstance(model, IPT):
        model = prepare_for_inference(model, task, dtype)
    layout = Layout(size, get_task(task).scale, overlap, stitch)
    limit = batch_size or getattr(model, "graph_windows", None) or _batch_that_fits(model, layout.scale)
    through = functools.partial(_restore_images, model, task, layout, limit, dtype, several)
    through = functools.partial(_self_ensemble, through) if self_ensemble else through
    if several:
        outputs = through([one.pixels for one in images], [one.dtype for one in images], progress)
        return [one.finish(out) for one, out in zip(images, outputs, strict=True)]
    (one,) = images
    home, batch = one.pixels.device, one.pixels.reshape(-1, *one.pixels.shape[-3:])
    device = next(model.parameters()).device
    if _lies_whole(batch, layout, device):  # the host waits once: for the results of the batch
        batch = moved(batch, device)
    outputs = through(list(batch), [one.dtype] * len(batch), progress)
    out = fetched(torch.stack(outputs) if len(outputs) > 1 else outputs[0][None], home)
    return one.finish(out.reshape(*one.pixels.shape[:-3], *out.shape[-3:]))


def _lies_whole(image: Tensor, layout: Layout, device: torch.device) -> bool:
    """Return whether an image [..., H, W] and its result stay on the network's device, a GPU, as a whole."""
    return device.type == "cuda" and fits_whole(layout, *image.shape[-2:])


def _self_ensemble(
    through: Callable[..., list[Tensor]],
    images: Sequence[Tensor],
    dtypes: Sequence[torch.dtype],
    progress: Callable[[float], None] | None,
) -> list[Tensor]:
    done = None if progress is None else lambda share: progress(share / 8)
    totals = [torch.zeros(()) for _ in images]
    for transpose in (False, True):
        for axes in ((), (-1,), (-2,), (-2, -1)):
            turned = [(image.transpose(-2, -1) if transpose else image).flip(axes) for image in images]
            for i, out in enumerate(through(turned, [torch.float32] * len(turned), done)):
                out = out.flip(axes)
                totals[i] = totals[i] + (out.transpose(-2, -1) if transpose else out)
    return [quantised(total / 8, dtype).to(dtype) for total, dtype in zip(totals, dtypes, strict=True)]


@torch.no_grad()
def _restore_images(
    model: PreparedIPT,
    task: str,
    layout: Layout,
    limit: int,
    dtype: torch.dtype | None,
    full: bool,
    images: Sequence[Tensor],
    dtypes: Sequence[torch.dtype],
    progress: Callable[[float], None] | None,
) -> list[Tensor]:
    """[3, H, W] each -> [3, rH, rW] each, of its dtype of ``dtypes``, on its own device."""
    device = next(model.parameters()).device
    on = dtype not in (None, torch.float32) and not isinstance(model, PreparedIPT)
    results: dict[int, Tensor] = {}
    with torch.autocast(device.type, dtype=dtype if on else torch.bfloat16, enabled=on):

        def network(windows: Tensor) -> Tensor:
            return model(windows, task)

        for whole, chosen, share in _by_way(images, layout, device):
            done = None if progress is None else functools.partial(_in_part, progress, share)
            if whole:
                there = [moved(images[i], device) for i in chosen]
                outputs = restored_whole(network, there, layout, limit, done, full=full)
                for i, out in zip(chosen, outputs, strict=True):
                    results[i] = fetched(quantised(out, dtypes[i]).to(dtypes[i]), images[i].device, wait=False)
                if any(images[i].device != device for i in chosen):
                    torch.cuda.current_stream(device).synchronize()  # once for all
            else:
                sources = [Source.of(images[i]) for i in chosen]
                strips = restored_strips(network, sources, layout, device, limit, done, full=full)
                for i, rows in zip(chosen, strips, strict=True):
                    height = images[i].shape[-2] * layout.scale
                    results[i] = gathered(rows, height, dtypes[i], images[i].device)
    # Inside the caller's own autocast the cast weights would stay, without the history that training needs.
    torch.clear_autocast_cache()
    return [results[i] for i in range(len(images))]


def _by_way(images: Sequence[Tensor], layout: Layout, device: torch.device) -> Iterator[tuple[bool, list[int], float]]:
    """Yield, for images that lie on the device as a whole and for others, which they are and their share of pixels."""
    total = sum(image[0].numel() for image in images)
    for whole in (True, False):
        chosen = [i for i, image in enumerate(images) if _lies_whole(image, layout, device) == whole]
        if chosen:
            yield whole, chosen, sum(images[i][0].numel() for i in chosen) / total


def _in_part(progress: Callable[[float], None], part: float, share: float) -> None:
    progress(part * share)


def _batch_that_fits(model: PreparedIPT, scale: int) -> int:
    """Windows at once: up to where more brings no speed, in at most half of the memory that is free."""
    config, device = model.config, next(model.parameters()).device
    tokens = config.num_tokens * config.embed_dim * (2 * config.ffn_ratio + 12)
    scores = 0 if device.type == "cuda" else config.num_heads * config.num_tokens**2
    tail = 6 * config.n_feats * (config.patch_size * scale) ** 2
    window = 4 * (tokens + scores + tail)
    if device.type == "cuda":
        free, most = torch.cuda.mem_get_info(device)[0], _GPU_BATCH
    else:
        free, most = _free_memory(), _CPU_BATCH
    return max(1, min(most, free // 2 // window))


def _free_memory() -> int:
    """Bytes of main memory that are free; 2 GiB where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2 << 30
