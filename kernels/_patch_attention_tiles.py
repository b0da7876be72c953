"""What the kernels of patch_attention share: how a head is cut into tiles, loaded and multiplied.

A head of d columns is held as two tiles of D0 and D1 columns, powers of two, because Triton has no others: 48 is
32 + 16, where padding to 64 would waste a quarter of every matmul. D1 = 0: one tile is enough. Columns beyond d read
as zero.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634


@triton.jit
def load_tile(X, row_stride, E, e_stride, rows, length, START: tl.constexpr, WIDTH: tl.constexpr, d: tl.constexpr,
              EVEN: tl.constexpr):  # fmt: skip
    """Load X[rows, START : START + WIDTH], plus E there unless None; zero beyond ``length`` rows and d columns."""
    cols = START + tl.arange(0, WIDTH)
    if EVEN and d >= START + WIDTH:
        x = tl.load(X + rows[:, None] * row_stride + cols[None, :])
        if E is not None:
            x += tl.load(E + rows[:, None] * e_stride + cols[None, :])
    else:
        inside = rows[:, None] < length
        if d < START + WIDTH:
            inside = inside & (cols[None, :] < d)
        x = tl.load(X + rows[:, None] * row_stride + cols[None, :], mask=inside, other=0.0)
        if E is not None:
            x += tl.load(E + rows[:, None] * e_stride + cols[None, :], mask=inside, other=0.0)
    return x


@triton.jit
def load_head(X, row_stride, E, e_stride, rows, length, d: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
              EVEN: tl.constexpr):  # fmt: skip
    """Load both tiles of a head; where D1 is 0 the second is the first again and nobody reads it."""
    x0 = load_tile(X, row_stride, E, e_stride, rows, length, 0, D0, d, EVEN)
    x1 = x0
    if D1 > 0:
        x1 = load_tile(X, row_stride, E, e_stride, rows, length, D0, D1, d, EVEN)
    return x0, x1


@triton.jit
def store_tile(X, row_stride, rows, length, x, START: tl.constexpr, WIDTH: tl.constexpr, d: tl.constexpr,
               EVEN: tl.constexpr):  # fmt: skip
    """Store x to X[rows, START : START + WIDTH], nothing beyond ``length`` rows and d columns."""
    cols = START + tl.arange(0, WIDTH)
    at = X + rows[:, None] * row_stride + cols[None, :]
    if EVEN and d >= START + WIDTH:
        tl.store(at, x.to(X.dtype.element_ty))
    else:
        inside = rows[:, None] < length
        if d < START + WIDTH:
            inside = inside & (cols[None, :] < d)
        tl.store(at, x.to(X.dtype.element_ty), mask=inside)


@triton.jit
def store_head(X, row_stride, rows, length, x0, x1, d: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
               EVEN: tl.constexpr):  # fmt: skip
    """Store both tiles of a head."""
    store_tile(X, row_stride, rows, length, x0, 0, D0, d, EVEN)
    if D1 > 0:
        store_tile(X, row_stride, rows, length, x1, D0, D1, d, EVEN)


@triton.jit
def dot_heads(a0, a1, b0, b1, D1: tl.constexpr):
    """Return a b^T over both tiles of the head, in float32 (float32 inputs are not rounded to tf32)."""
    s = tl.dot(a0, tl.trans(b0), input_precision="ieee")
    if D1 > 0:
        s = tl.dot(a1, tl.trans(b1), s, input_precision="ieee")
    return s


@triton.jit
def add_dot(acc0, acc1, w, x0, x1, D1: tl.constexpr):
    """Return acc + w x for both tiles of x."""
    acc0 = tl.dot(w, x0, acc0, input_precision="ieee")
    if D1 > 0:
        acc1 = tl.dot(w, x1, acc1, input_precision="ieee")
    return acc0, acc1


def split_head(d: int) -> tuple[int, int]:
    """Return (D0, D1): the least number of columns that one or two powers of two of at least 16 can cover d with.

    Heads of more than 64 get one tile: two such tiles do not fit into registers.
    """
    whole = max(16, triton.next_power_of_2(d))
    first = whole // 2
    rest = max(16, triton.next_power_of_2(max(d - first, 1)))
    return (first, rest) if 16 < whole <= 64 and first + rest < whole else (whole, 0)


def rows_dense(x: Tensor | None) -> Tensor | None:
    """Return x itself where its rows can be read by stride with 32-bit offsets, otherwise a copy."""
    if x is None or (x.stride(-1) == 1 and _row_span(x) < 2**31):
        return x
    x = x.contiguous()
    if _row_span(x) >= 2**31:
        raise ValueError(f"patch_attention: one image's [N, D] must have fewer than 2**31 values (got {list(x.shape)})")
    return x


def _row_span(x: Tensor) -> int:
    return x.shape[-2] * x.stride(-2)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the multiprocessors of a GPU; 1 for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def capability_of(device: torch.device) -> tuple[int, int]:
    """Return a GPU's compute capability; 8.0 for the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
