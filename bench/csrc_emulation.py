"""Run the kernels of ``csrc/`` on a CPU: their own source, compiled by g++ against tests/csrc/cuda_emulation.h.

It proves indices, barriers, races and arithmetic, and counts wavefronts of shared memory; it says nothing about time.
"""

import ctypes
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "csrc" / "emulate_patch_attention.cpp"
FLAGS = ("-std=c++20", "-O2", "-march=native", "-fno-strict-aliasing", "-shared", "-fPIC", "-Wno-unknown-pragmas")
HEADER = 10_000  # added to the numbers of lines that are in a header


class Emulation:
    """The emulated kernels. Build into ``folder``; raises RuntimeError with the compiler's words where it refuses."""

    def __init__(self, folder: Path) -> None:
        library = folder / "emulation.so"
        done = subprocess.run(["g++", *FLAGS, str(SOURCE), "-o", str(library)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[:2000])
        self._library = ctypes.CDLL(str(library))
        for function in ("emulate_forward", "emulate_backward", "wavefronts"):
            getattr(self._library, function).restype = ctypes.c_char_p
        self.configure()

    def configure(self, *, layout: int = 0, order: int = 0, skip_barrier: int = 0, counts: bool = False) -> None:
        """Set how the next calls run.

        Args:
            layout: of accumulators: 0 sm_70, 1 sm_80, from 2 on shuffled by that seed, -1 one that no GPU has.
            order: in which warps run: 0 first to last, 1 last to first, from 2 on shuffled by that seed.
            skip_barrier: the line whose barrier is left out (``HEADER`` higher in the header), 0 for none.
            counts: count wavefronts.
        """
        self._library.configure(layout, order, skip_barrier, counts)

    def geometry(self, direction: str, d: int, warps: int) -> tuple[int, int, int]:
        """Return threads a block, bytes of shared memory, and queries (forward) or keys (backward) a block."""
        out = (ctypes.c_int * 3)()
        self._library.geometry(direction == "backward", d, warps, out)
        return out[0], out[1], out[2]

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        num_heads: int,
        q_embed: Tensor | None = None,
        k_embed: Tensor | None = None,
        *,
        scale: float,
        rows_a_warp: int = 32,
    ) -> tuple[Tensor, Tensor]:
        """Return out [B, N, D] and lse [B, H, N]. Raises RuntimeError for a race, a deadlock or a trap."""
        (B, N, D), M, H = q.shape, k.shape[1], num_heads
        out = torch.full((B, N, D), math.nan, dtype=torch.float16)
        lse = torch.full((B, H, N), math.nan)
        size = (ctypes.c_int * 6)(B, H, N, M, D // H, rows_a_warp)
        strides = _strides([q, k, v], [q_embed, k_embed], [])
        inputs = _pointers([q, k, v, q_embed, k_embed])
        _check(self._library.emulate_forward(inputs, _at(out), _at(lse), size, strides, ctypes.c_float(scale)))
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        num_heads: int,
        q_embed: Tensor | None,
        k_embed: Tensor | None,
        out: Tensor,
        lse: Tensor,
        *,
        scale: float,
        into: Sequence[Tensor] | None = None,
        warps: int = 8,
    ) -> list[Tensor]:
        """Return dq, dk and dv (``into``, where given). Raises RuntimeError as ``forward`` does."""
        (B, N, D), M, H = q.shape, k.shape[1], num_heads
        grads = list(into or (torch.full(x.shape, math.nan, dtype=x.dtype) for x in (q, k, v)))
        sums = torch.full((B * H, (N + 31) // 32 * 32, D // H), math.nan)
        workspace = None if warps * 32 >= M else _at(sums)
        size = (ctypes.c_int * 6)(B, H, N, M, D // H, warps)
        strides = _strides([grad, q, k, v], [q_embed, k_embed], grads)
        inputs = _pointers([grad, q, k, v, q_embed, k_embed, out])
        function, factor = self._library.emulate_backward, ctypes.c_float(scale)
        _check(function(inputs, _at(lse), _pointers(grads), workspace, size, strides, factor))
        return grads

    def wavefronts(self) -> list[tuple[int, int, bool, int, int, int]]:
        """Return of the last call: line, bytes a lane, written or read, instructions, wavefronts split and merged."""
        rows = [[int(n) for n in line.split()] for line in self._library.wavefronts().decode().splitlines()]
        return [(line, size, bool(write), n, split, merged) for line, size, write, n, split, merged in rows]


def _at(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))


def _strides(
    inputs: Sequence[Tensor], embeds: Sequence[Tensor | None], outputs: Sequence[Tensor]
) -> ctypes.Array[ctypes.c_longlong]:
    strides = [stride for x in inputs for stride in x.stride()[:2]]
    strides += [0 if x is None else x.stride(0) for x in embeds]
    strides += [stride for x in outputs for stride in x.stride()[:2]]
    return (ctypes.c_longlong * len(strides))(*strides)


def _check(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())
