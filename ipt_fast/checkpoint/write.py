"""A network into a file: safetensors, our own format, or the layout that the reference code reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.checkpoint.load import RELEASED_HEADS
from ipt_fast.checkpoint.read import FORMAT
from ipt_fast.io.atomic import atomic_write
from ipt_fast.model import IPT
from ipt_fast.tasks import TASKS

Layout = Literal["safetensors", "own", "released"]
LAYOUTS: dict[Layout, str] = {
    "safetensors": "safetensors with the sizes and tasks beside the weights",
    "own": "torch.save with the sizes and tasks beside the weights",
    "released": "torch.save of the weights alone, as the reference code reads them",
}


@checked
def save_network(
    model: IPT,
    path: str | Path,
    layout: Layout | None = None,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write a network so that ``load_checkpoint`` reads it again; an existing file is replaced at the very end.

    Args:
        model: on any device.
        path: its name.
        layout: "safetensors", "own" or "released"; None: safetensors where the name ends so, otherwise "own".
        dtype: of the floating-point weights in the file; None leaves them.
        notes: further entries for the header of a safetensors file.

    Raises:
        ValueError: the layout cannot hold this network ("released" says neither heads nor task names).
        OSError: the file cannot be written; one that was there is as before.
    """
    path = Path(path)
    layout = layout or ("safetensors" if path.suffix.lower() == ".safetensors" else "own")
    if layout == "released":
        _check_released(model)
    weights = {key: _as(value, dtype) for key, value in model.state_dict().items()}
    with atomic_write(path) as file:
        if layout == "safetensors":
            header = {**(notes or {}), "format": "pt", "config": json.dumps(model.config.to_dict())}
            file.write(save(weights, header))  # its save_file would let nobody but the owner read the file
        else:
            own = {"format": FORMAT, "config": model.config.to_dict(), "model": weights}
            torch.save(own if layout == "own" else weights, file)
    return path


def _as(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu()
    return value.to(dtype).contiguous() if dtype is not None and value.is_floating_point() else value.contiguous()


def _check_released(model: IPT) -> None:
    config = model.config
    if config.num_heads != RELEASED_HEADS:
        raise ValueError(
            f"the released layout does not say the number of heads, which its readers take for {RELEASED_HEADS}; "
            f"this network has {config.num_heads}"
        )
    if len(config.tasks) > 1 and config.tasks != TASKS:
        raise ValueError(
            f"the released layout holds one task or the six of {', '.join(TASKS)}; this network has "
            f"{', '.join(config.tasks)}; keep one"
        )
