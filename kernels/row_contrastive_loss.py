"""What lies between the GEMMs of row_contrastive_loss: a pass over each tile of x y^T forward, and one backward.

A tile is dense float32 [rows, columns]. A program takes a block of it; what its rows and its columns sum up to goes
into parts, which are added in a fixed order, so that results repeat bit by bit. No tensor-core products: these run from
sm_70 on. Products and sums are not fused: the logit of a maximum less that maximum has to be 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS, _MERGE = 32, 128, 32  # a block: 16 numbers a thread; sums of a program that adds parts
_NOWHERE = 2**31 - 1  # offset of the diagonal of a tile without positives
_OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def load_block(
    TILE,  # in: x y^T, float32 [rows, columns], dense
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the program's block, its row and column numbers, whether these are in the tile, and where it lies."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    at = r[:, None] * columns + c[None, :]
    return tl.load(TILE + at, mask=inside, other=0.0), r, c, inside, at


@triton.jit
def softmax_sums_kernel(
    TILE,  # in: x y^T, float32 [rows, columns], dense
    SCALE,  # in: float32 [1]
    BY_ROW,  # out: maximum and sum of exponentials of a block's rows, float32 [column blocks, 2, rows], or None
    BY_COLUMN,  # out: of its columns, float32 [row blocks, 2, columns], or None
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum exponentials along both axes: one program takes ROWS x COLUMNS logits."""
    s, r, c, inside, _ = load_block(TILE, rows, columns, ROWS, COLUMNS)
    logits = tl.where(inside, s * tl.load(SCALE), float("-inf"))
    if BY_ROW is not None:
        most = tl.max(logits, 1)
        terms = tl.where(inside, tl.exp(logits - most[:, None]), 0.0)
        part = BY_ROW + tl.program_id(1) * 2 * rows + r
        tl.store(part, most, mask=r < rows)
        tl.store(part + rows, tl.sum(terms, 1), mask=r < rows)
    if BY_COLUMN is not None:
        most = tl.max(logits, 0)
        terms = tl.where(inside, tl.exp(logits - most[None, :]), 0.0)
        part = BY_COLUMN + tl.program_id(0) * 2 * columns + c
        tl.store(part, most, mask=c < columns)
        tl.store(part + columns, tl.sum(terms, 0), mask=c < columns)


@triton.jit
def merge_sums_kernel(
    GIVEN,  # in: maxima and sums of exponentials, float32 [parts, 2, n], dense
    MOST,  # in and out: the maxima so far, float32 [n]
    SUMS,  # in and out: the sums so far, float32 [n]
    parts,
    n,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Bring maxima and sums up to date: one program takes BLOCK of them and all their parts at once."""
    part = tl.arange(0, PARTS)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (part[:, None] < parts) & (i[None, :] < n)
    at = part[:, None] * 2 * n + i[None, :]
    other = tl.load(GIVEN + at, mask=inside, other=float("-inf"))
    terms = tl.load(GIVEN + n + at, mask=inside, other=0.0)
    most = tl.load(MOST + i, mask=i < n, other=0.0)
    sums = tl.load(SUMS + i, mask=i < n, other=0.0)
    both = tl.maximum(most, tl.max(other, 0))
    sums = sums * tl.exp(most - both) + tl.sum(terms * tl.exp(other - both[None, :]), 0)
    tl.store(MOST + i, both, mask=i < n)
    tl.store(SUMS + i, sums, mask=i < n)


@triton.jit
def softmax_gradient_kernel(
    TILE,  # in: x y^T, float32 [rows, columns], dense
    SCALE,  # in: float32 [1]
    OF_ROWS,  # in: weights, maxima and sums of the rows, float32 [3, rows], dense
    OF_COLUMNS,  # in: of the columns, float32 [3, columns], dense
    G,  # out: gradient of the logits [rows, columns], dense, in the dtype of the GEMMs
    rows,
    columns,
    offset,  # of the diagonal on which the positives lie
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Make the gradient of the logits: one program makes ROWS x COLUMNS of them."""
    s, r, c, inside, at = load_block(TILE, rows, columns, ROWS, COLUMNS)
    logits = s * tl.load(SCALE)
    weights = tl.load(OF_ROWS + r, mask=r < rows, other=0.0)
    most = tl.load(OF_ROWS + rows + r, mask=r < rows, other=0.0)
    sums = tl.load(OF_ROWS + 2 * rows + r, mask=r < rows, other=1.0)
    g = tl.exp(logits - most[:, None]) * (weights / (2 * sums))[:, None]
    positives = c[None, :] - r[:, None] == offset
    g += tl.where(positives, -weights[:, None], 0.0)
    weights = tl.load(OF_COLUMNS + c, mask=c < columns, other=0.0)
    most = tl.load(OF_COLUMNS + columns + c, mask=c < columns, other=0.0)
    sums = tl.load(OF_COLUMNS + 2 * columns + c, mask=c < columns, other=1.0)
    g += tl.exp(logits - most[None, :]) * (weights / (2 * sums))[None, :]
    tl.store(G + at, g.to(G.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid_losses_kernel(
    TILE,  # in: x y^T, float32 [rows, columns], dense
    SCALE,  # in: float32 [1]
    BIAS,  # in: float32 [1]
    PARTS,  # out: losses of a block's rows, float32 [column blocks, rows], dense
    rows,
    columns,
    offset,  # of the diagonal on which the positives lie
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum log(1 + exp(-z l)) along the rows: one program takes ROWS x COLUMNS logits."""
    s, r, c, inside, _ = load_block(TILE, rows, columns, ROWS, COLUMNS)
    u = s * tl.load(SCALE) + tl.load(BIAS)
    u = tl.where(c[None, :] - r[:, None] == offset, -u, u)
    # log(1 + z) as 2 atanh(z / (2 + z)), whose series is exact to float32 for z <= 1: 1 + z would round a small z away
    z = tl.exp(-tl.abs(u))
    t = z / (2.0 + z)
    q = t * t
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    losses = tl.where(inside, tl.where(u > 0, u, 0.0) + 2.0 * t * series, 0.0)
    tl.store(PARTS + tl.program_id(1) * rows + r, tl.sum(losses, 1), mask=r < rows)


@triton.jit
def sigmoid_gradient_kernel(
    TILE,  # in: x y^T, float32 [rows, columns], dense
    SCALE,  # in: float32 [1]
    BIAS,  # in: float32 [1]
    WEIGHTS,  # in: of the rows, float32 [rows]
    G,  # out: gradient of the logits [rows, columns], dense, in the dtype of the GEMMs
    PARTS,  # out: sums of it over a block's columns, float32 [column blocks, rows], dense
    rows,
    columns,
    offset,  # of the diagonal on which the positives lie
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Make the gradient of the logits: one program makes ROWS x COLUMNS of them."""
    s, r, c, inside, at = load_block(TILE, rows, columns, ROWS, COLUMNS)
    z = tl.where(c[None, :] - r[:, None] == offset, 1.0, -1.0)
    g = -z / (1.0 + tl.exp(z * (s * tl.load(SCALE) + tl.load(BIAS))))
    g *= tl.load(WEIGHTS + r, mask=r < rows, other=0.0)[:, None]
    tl.store(G + at, g.to(G.dtype.element_ty), mask=inside)
    tl.store(PARTS + tl.program_id(1) * rows + r, tl.sum(tl.where(inside, g, 0.0), 1), mask=r < rows)


def _grid(tile: Tensor) -> tuple[int, int]:
    """Return the blocks along rows and along columns."""
    return triton.cdiv(tile.shape[0], _ROWS), triton.cdiv(tile.shape[1], _COLUMNS)


def _block(tile: Tensor) -> dict[str, int]:
    rows, columns = tile.shape
    return {"rows": rows, "columns": columns, "ROWS": _ROWS, "COLUMNS": _COLUMNS, **_OPTIONS}


def _block_and_positives(tile: Tensor, offset: int | None) -> dict[str, int]:
    return {**_block(tile), "offset": _NOWHERE if offset is None else offset}


def add_sums(tile: Tensor, scale: Tensor, rows: Tensor | None, columns: Tensor | None, spare: Tensor) -> None:
    """Bring maxima and sums of the exponentials of logits, [2, rows] and [2, columns] where asked for, up to date."""
    row_blocks, column_blocks = _grid(tile)
    with torch.cuda.device_of(tile):
        needed = ((rows, column_blocks), (columns, row_blocks))
        parts = [None if sums is None else tile.new_empty(blocks, *sums.shape) for sums, blocks in needed]
        softmax_sums_kernel[_grid(tile)](tile, scale, *parts, **_block(tile))
        for part, sums in zip(parts, (rows, columns), strict=True):
            if part is not None and sums is not None:
                n = sums.shape[1]
                block = {"PARTS": triton.next_power_of_2(len(part)), "BLOCK": _MERGE}
                merge_sums_kernel[(triton.cdiv(n, _MERGE),)](part, *sums, len(part), n, **block, **_OPTIONS)


def softmax_gradient(
    tile: Tensor, scale: Tensor, offset: int | None, rows: Tensor, columns: Tensor, dtype: torch.dtype, spare: Tensor
) -> Tensor:
    """Return the gradient of the logits in ``dtype``; see the kernel for ``rows`` and ``columns``."""
    g = spare if dtype == spare.dtype else torch.empty_like(tile, dtype=dtype)
    with torch.cuda.device_of(tile):
        of = rows.contiguous(), columns.contiguous()
        softmax_gradient_kernel[_grid(tile)](tile, scale, *of, g, **_block_and_positives(tile, offset))
    return g


def add_losses(tile: Tensor, scale: Tensor, bias: Tensor, offset: int | None, values: Tensor, spare: Tensor) -> None:
    """Add the sigmoid losses of the rows to ``values`` [rows]."""
    parts = tile.new_empty(_grid(tile)[1], len(tile))
    with torch.cuda.device_of(tile):
        sigmoid_losses_kernel[_grid(tile)](tile, scale, bias, parts, **_block_and_positives(tile, offset))
    values += parts.sum(0)


def sigmoid_gradient(
    tile: Tensor, scale: Tensor, bias: Tensor, offset: int | None, weights: Tensor, dtype: torch.dtype, spare: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the logits in ``dtype``, and its sum []."""
    g = spare if dtype == spare.dtype else torch.empty_like(tile, dtype=dtype)
    parts = tile.new_empty(_grid(tile)[1], len(tile))
    with torch.cuda.device_of(tile):
        args = tile, scale, bias, weights.contiguous(), g, parts
        sigmoid_gradient_kernel[_grid(tile)](*args, **_block_and_positives(tile, offset))
    return g, parts.sum()
