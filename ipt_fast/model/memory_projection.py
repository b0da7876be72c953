"""Keys and values of the decoder's memory for all of its layers by one product, at inference."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ipt_fast.model.norm import compute_dtype
from ipt_fast.model.steps import optimizer_steps
from ipt_fast.ops._common import any_requires_grad


class MemoryProjection:
    """The layers' key and value weights side by side, [L 2D, D], kept from call to call in the dtype that multiplies.

    A call that learns drops them. So does a step of an optimizer, and a change of a weight that PyTorch counts: writes
    through ``.data`` it does not count; call ``forget`` after those.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what is kept."""
        self._state: object = None
        self._weight: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> "MemoryProjection":
        return MemoryProjection()

    def __reduce__(self) -> tuple:
        return MemoryProjection, ()

    def __call__(self, weights: Sequence[Tensor], memory: Tensor) -> list[tuple[Tensor, Tensor] | None]:
        """(k, v), views of one [B, M, L 2D], for every layer; None for each where the layers are to do it themselves.

        Args:
            weights: the layers' packed projections [3D, D], rows q, k, v.
            memory: [B, M, D].
        """
        if torch.compiler.is_compiling() or memory.is_meta:
            return [None] * len(weights)
        if any_requires_grad((memory, *weights)):
            self.forget()  # in training every layer keeps its own, and gives its memory back in its own backward
            return [None] * len(weights)
        parts = F.linear(memory, self._joined(weights, compute_dtype(weights[0]))).chunk(
            2 * len(weights), dim=-1
        )  # [B, M, D] each
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _joined(self, weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        D = weights[0].shape[1]
        try:
            state = (dtype, optimizer_steps(), [(w.data_ptr(), w._version, w.shape, w.dtype) for w in weights])
        except RuntimeError:  # inference tensors count no changes
            state = None
        if state is None or state != self._state or self._weight is None:
            with torch.inference_mode(False), torch.no_grad():
                joined = torch.cat([w.detach()[D:].to(dtype) for w in weights])  # [L 2D, D]
            if state is None:
                return joined
            self._state, self._weight = state, joined
        return self._weight
