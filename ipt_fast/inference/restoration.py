"""One image of any size through a network that takes squares of one size."""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.checkpoint import PRETRAINED, load_checkpoint
from ipt_fast.inference.linear import EIGHT_BITS
from ipt_fast.inference.prepare import DTYPES, PreparedIPT, prepare_for_inference
from ipt_fast.io.images import array_to_tensor, from_pil, read_image
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
    """Restore an image, or a batch of images of one size, of any size from 1x1 up.

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
            on the device of the image.
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
        if isinstance(image, Tensor) and not image.is_meta:
            model = model.to(image.device)
    if not hasattr(model, "task_index") or not hasattr(model, "config"):
        raise TypeError(f"restore: model must be an IPT, a prepared one, or None (got {type(model).__name__})")
    again = functools.partial(
        restore, model, task=task, overlap=overlap, stitch=stitch, batch_size=batch_size, dtype=dtype,
        self_ensemble=self_ensemble, progress=progress,
    )  # fmt: skip
    if isinstance(image, (str, os.PathLike)) and image:
        return again(read_image(Path(image)).pil())
    if isinstance(image, Image.Image):
        loaded = from_pil(image)
        result = Image.fromarray(again(loaded.pixels))
        if loaded.alpha is not None:  # enlarged with the image, and kept
            result.putalpha(Image.fromarray(enlarge_alpha(loaded.alpha, result.size)))
        result.info.update(loaded.metadata.options("PNG")[0].items())
        return result
    if isinstance(image, np.ndarray):
        pixels = array_to_tensor(image)
        kind = torch.uint16 if image.dtype == np.uint16 else torch.uint8
    else:
        pixels, kind = image, torch.float32
    holds_data = isinstance(pixels, Tensor) and not pixels.is_meta and pixels.layout is torch.strided
    if not holds_data or pixels.dim() not in (3, 4) or pixels.shape[-3] != 3 or 0 in pixels.shape:
        given = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            "restore: image must be a path, a PIL image, a uint8 array [H, W, 3] or a dense tensor [B, 3, H, W] 0..255 "
            f"that holds data, got {given}"
        )
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
    batch = pixels.reshape(-1, *pixels.shape[-3:])
    layout = Layout(size, get_task(task).scale, overlap, stitch)
    limit = batch_size or getattr(model, "graph_windows", None) or _batch_that_fits(model, layout.scale)
    device = next(model.parameters()).device
    # On a GPU a photo and its result stay there, and the host waits once: for the result.
    whole = device.type == "cuda" and fits_whole(layout, *batch.shape[-2:])
    through = functools.partial(_restore_batch, model, task, layout, limit, dtype, whole)
    home, batch = batch.device, moved(batch, device) if whole else batch
    out = _self_ensemble(through, batch, kind, progress) if self_ensemble else through(batch, kind, progress)
    out = fetched(out, home)
    out = out.reshape(*pixels.shape[:-3], *out.shape[-3:])
    return out.permute(1, 2, 0).contiguous().numpy() if isinstance(image, np.ndarray) else out


def enlarge_alpha(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize alpha [H, W] bicubically to (width, height), in its dtype."""
    large = np.asarray(Image.fromarray(alpha.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    return np.clip(np.rint(large), 0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)


def _self_ensemble(
    through: Callable[..., Tensor], batch: Tensor, kind: torch.dtype, progress: Callable[[float], None] | None
) -> Tensor:
    done = None if progress is None else lambda share: progress(share / 8)
    total = torch.zeros(())
    for transpose in (False, True):
        turned = batch.transpose(-2, -1) if transpose else batch
        for axes in ((), (-1,), (-2,), (-2, -1)):
            out = through(turned.flip(axes), torch.float32, done).flip(axes)
            total = total + (out.transpose(-2, -1) if transpose else out)
    return quantised(total / 8, kind).to(kind)


@torch.no_grad()
def _restore_batch(
    model: PreparedIPT,
    task: str,
    layout: Layout,
    limit: int,
    dtype: torch.dtype | None,
    whole: bool,
    batch: Tensor,
    kind: torch.dtype,
    progress: Callable[[float], None] | None,
) -> Tensor:
    """[B, 3, H, W] -> [B, 3, rH, rW] of the dtype ``kind`` on the device of the batch."""
    device = next(model.parameters()).device
    on = dtype not in (None, torch.float32) and not isinstance(model, PreparedIPT)
    with torch.autocast(device.type, dtype=dtype if on else torch.bfloat16, enabled=on):

        def network(windows: Tensor) -> Tensor:
            return model(windows, task)

        if whole:
            results = restored_whole(network, list(batch), layout, limit, progress)
            images = [quantised(result, kind).to(kind) for result in results]
        else:
            sources = [Source.of(image) for image in batch]
            strips = restored_strips(network, sources, layout, device, limit, progress)
            images = [gathered(one, batch.shape[-2] * layout.scale, kind, batch.device) for one in strips]
    # Inside the caller's own autocast the cast weights would stay, without the history that training needs.
    torch.clear_autocast_cache()
    return torch.stack(images) if len(images) > 1 else images[0][None]


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
