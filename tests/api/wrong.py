"""Values of every wrong kind, and what an error has to be like."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_OURS = re.compile(r"/(ipt_fast|kernels)/[^<]*\.py$")

# Of two arguments that do not go together an error may name the other, or what both are.
_GO_WITH = {
    "convs": ("convolution",), "scales": ("scale", "PixelShuffle"), "features": ("images",), "clean": ("sides",),
    "source": ("image",), "weight": ("bias",), "weight1": ("bias1", "weight2"),
    "weight2": ("bias2",), "num_heads": ("heads",),
}  # fmt: skip


def wrong_values(valid: Any) -> list[Any]:
    """Return what may be given in place of ``valid``; some of it may be right after all."""
    plain = [
        None,
        "",
        "no-such",
        b"x",
        0,
        1,
        -1,
        2**70,
        1.5,
        float("nan"),
        float("inf"),
        True,
        [],
        (),
        {},
        [3],
        {"a": "b"},
    ]
    others = [object(), abs, torch.float64, nn.ReLU(), torch.ones(()), torch.ones(2, 3), torch.ones(0), Path("no/such")]
    return [*plain, *others, *(_wrong_tensors(valid) if isinstance(valid, Tensor) else ())]


def _wrong_tensors(x: Tensor) -> list[Tensor]:
    other = torch.uint8 if x.is_floating_point() else torch.float32
    sparse = [] if x.is_meta else [x.to_sparse()]
    shapes = [x[None], x.flatten()]
    parts = [x[:0], x[..., :0], x[..., :1]] if x.dim() else []
    return [*shapes, *parts, x.to(other), x.bool(), x.to(torch.complex64), x.to("meta"), *sparse]


def fault_of(error: BaseException, name: str, value: Any) -> str | None:
    """Return why an error is none that a person can act on, or None."""
    text, trace = str(error), error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_code.co_filename if trace is not None else ""
    if not isinstance(error, (TypeError, ValueError, RuntimeError, OSError)) or isinstance(error, UnicodeError):
        return f"{type(error).__name__}: {text[:200]}"
    if "\n" in text:
        return f"several lines: {text[:200]!r}"
    if not _OURS.search(raised_in) and not (isinstance(error, OSError) and str(value) in text):
        return f"a foreign message, from {raised_in[-60:]}: {type(error).__name__}: {text[:200]}"
    shown = (str(value) or repr(value)) in text if isinstance(value, (str, Path)) else False
    shown |= isinstance(error, OSError) and isinstance(value, Path) and f"'{value.parent}/" in text
    if not shown and not any(word in text for word in (name, *_GO_WITH.get(name, ()))):
        return f"does not name {name}: {text[:200]}"
    return None
