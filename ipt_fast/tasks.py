"""The restoration tasks: their names, order and parameters."""

import re
from dataclasses import dataclass
from typing import Literal

from ipt_fast.arguments import checked

Kind = Literal["sr", "derain", "denoise", "deblur"]


@checked(scale=1, sigma=0)
@dataclass(frozen=True)
class Task:
    """One restoration task. ``scale`` is output size over input size; ``sigma`` is in pixel units (0..255)."""

    name: str
    kind: Kind
    scale: int = 1
    sigma: float = 0.0


# The order of the released six-task checkpoints: head, tail and task embedding i belong to TASKS[i].
TASKS = ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50")

_DENOISE = re.compile(r"denoise(\d+(?:\.\d+)?)")


@checked
def get_task(name: "str | Task") -> Task:
    """Return the task named ``sr2``, ``sr3``, ``sr4``, ``derain``, ``deblur``, or ``denoise<sigma>`` for any sigma.

    There is no synthetic blur: ``deblur`` is trained on pairs of photos.

    Raises:
        ValueError: the name is none of these.
    """
    if isinstance(name, Task):
        return name
    if name in ("sr2", "sr3", "sr4"):
        return Task(name, "sr", scale=int(name[2:]))
    if name == "derain":
        return Task(name, "derain")
    if name == "deblur":
        return Task(name, "deblur")
    match = _DENOISE.fullmatch(name)
    if match and float(match[1]) > 0:
        return Task(name, "denoise", sigma=float(match[1]))
    raise ValueError(
        f"task {name!r} is not known; choose one of {', '.join(TASKS)}, denoise<sigma> (sigma > 0), deblur"
    )
