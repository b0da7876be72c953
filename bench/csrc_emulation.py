"""Run the kernels of ``csrc/`` on a CPU: their own source, compiled by g++ against tests/csrc/cuda_emulation.h.

It proves indices, barriers, races and arithmetic, and counts wavefronts of shared memory; it says nothing about time.
"""

import ctypes
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        arguments = [*map(_at, (q, k, v, q_embed, k_embed, out, lse)), H, N, M]
        arguments += [*_strides([q, k, v], [q_embed, k_embed], []), scale]
        self.launch("forward", D // H, B, arguments, rows_a_warp)
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
        arguments = [*map(_at, (grad, q, k, v, q_embed, k_embed, out, lse, *grads)), workspace, H, N, M]
        arguments += [*_strides([grad, q, k, v], [q_embed, k_embed], grads), scale]
        self.launch("backward", D // H, B, arguments, warps)
        return grads

    def launch(self, direction: str, d: int, B: int, arguments: Sequence[Any], variant: int) -> None:
        """Run a kernel with the arguments of its launch: addresses, None or 0 for a null pointer, and numbers.

        Args:
            direction: "forward" or "backward".
            d: the head size.
            B: images.
            arguments: in the order of the source.
            variant: queries a warp (forward) or warps (backward).
        """
        forward = direction == "forward"
        count = 7 if forward else 12
        pointers, (H, N, M), strides = arguments[:count], arguments[count : count + 3], arguments[count + 3 : -1]
        at = [ctypes.c_void_p(p or None) for p in pointers]
        size = (ctypes.c_int * 6)(B, H, N, M, d, variant)
        shared = size, (ctypes.c_longlong * len(strides))(*strides), ctypes.c_float(arguments[-1])
        if forward:
            error = self._library.emulate_forward(_array(at[:5]), *at[5:], *shared)
        else:
            error = self._library.emulate_backward(_array(at[:7]), at[7], _array(at[8:11]), at[11], *shared)
        if error is not None:
            raise RuntimeError(error.decode())

    def wavefronts(self) -> list[tuple[int, int, bool, int, int, int]]:
        """Return of the last call: line, bytes a lane, written or read, instructions, wavefronts split and merged."""
        rows = [[int(n) for n in line.split()] for line in self._library.wavefronts().decode().splitlines()]
        return [(line, size, bool(write), n, split, merged) for line, size, write, n, split, merged in rows]


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _array(pointers: Sequence[ctypes.c_void_p]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(pointers))(*pointers)


def _strides(inputs: Sequence[Tensor], embeds: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> list[int]:
    strides = [stride for x in inputs for stride in x.stride()[:2]]
    strides += [0 if x is None else x.stride(0) for x in embeds]
    return strides + [stride for x in outputs for stride in x.stride()[:2]]
