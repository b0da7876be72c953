"""Triton kernels as they are launched, registered for compilation without a GPU.

Each ``bench/offline_cases/<op>.py`` has one function, ``offline_cases() -> list[OfflineCase]``; ``bench/offline.py``
finds them all and compiles them in processes where Triton's interpreter is off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OfflineCase:
    """One kernel with the argument types and constants of one launch.

    Attributes:
        op: public name of the op, for the table.
        kernel_name: which kernel of the op, for the table ("forward", "backward dk dv").
        fn: the ``@triton.jit`` function; ``@autotune`` and ``@heuristics`` wrappers are taken off.
        types: every argument that is no constant -> Triton's type string ("*fp16", "*bf16", "*fp32", "i32", "fp32").
        consts: every constexpr argument -> its value; also a pointer that is passed as None.
        align16: sizes and strides that are multiples of 16 at launch; pointers, of fresh tensors, always are.
        num_warps, num_stages, fp_fusion: as launched.
        targets: compute capabilities to compile for.
        small: pointers of tensors that never have 2^31 elements; all others must be reached by 64-bit offsets.
        needs_tensor_cores: True where the kernel must contain tensor-core instructions.
        label: dtype and shape as the table shows them; made from ``types`` and ``consts`` when empty.
    """

    op: str
    kernel_name: str
    fn: Any
    types: Mapping[str, str]
    consts: Mapping[str, Any]
    align16: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    fp_fusion: bool = True
    targets: tuple[int, ...] = (80, 90)
    small: tuple[str, ...] = ()
    needs_tensor_cores: bool = True
    label: str = ""

    def describe(self) -> str:
        """Return ``label``, or the first pointer's dtype and the integer constants."""
        if self.label:
            return self.label
        dtype = next((t[1:] for t in self.types.values() if t.startswith("*")), "")
        numbers = [f"{k}={v}" for k, v in self.consts.items() if type(v) is int]
        return " ".join([dtype, *numbers]).strip()
