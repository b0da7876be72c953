"""The passes over memory between the GEMMs of a transformer block: LayerNorm, its gradient, ReLU's gradient.

Each reads and writes every tensor once. The casts to the dtype of the GEMMs happen on the way; sums over rows (the
gradients of the norm's parameters and of a bias) are kept on chip by a fixed number of programs and added up in a fixed
order, so that they repeat bit by bit. No tensor-core products: these run from sm_70 on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 512  # that share the rows of a backward: 6 on each multiprocessor of a V100, 4 of an H100
_RELU_ROWS, _RELU_COLUMNS = 16, 128
_SUM_ROWS, _SUM_COLUMNS = 128, 16


@triton.jit
def norm_kernel(
    X,  # in: tokens [rows, D], dense
    BRANCH,  # in: what is added to them first [rows, D], dense, or None
    WEIGHT,  # in: [D]
    BIAS,  # in: [D]
    SUM,  # out: the sum, in the dtype of X, or None
    Y,  # out: normalised tokens [rows, D], dense, in the dtype of the GEMM
    MEAN,  # out: float32 [rows]
    RSTD,  # out: 1 / standard deviation, float32 [rows]
    rows,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add, normalise and cast: one program makes ROWS tokens."""
    # Load
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    column = cols < D
    inside = (r[:, None] < rows) & column[None, :]
    at = r[:, None] * D + cols[None, :]
    x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(WEIGHT + cols, mask=column, other=0.0).to(tl.float32)
    bias = tl.load(BIAS + cols, mask=column, other=0.0).to(tl.float32)

    # Add; what is normalised is the sum as it is stored
    if BRANCH is not None:
        x += tl.load(BRANCH + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(SUM + at, x.to(SUM.dtype.element_ty), mask=inside)
        x = x.to(SUM.dtype.element_ty).to(tl.float32)

    # Normalise
    mean = tl.sum(x, 1) / D
    x = tl.where(column[None, :], x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(x * x, 1) / D + eps)
    y = x * rstd[:, None] * weight[None, :] + bias[None, :]

    # Store
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=inside)
    tl.store(MEAN + r, mean, mask=r < rows)
    tl.store(RSTD + r, rstd, mask=r < rows)


@triton.jit
def norm_backward_kernel(
    G,  # in: gradient of the normalised tokens [rows, D], dense
    X,  # in: tokens [rows, D], dense
    WEIGHT,  # in: [D]
    MEAN,  # in: float32 [rows]
    RSTD,  # in: float32 [rows]
    PAST,  # in: gradient that has gone past the norm [rows, D], dense, or None
    DX,  # out: gradient of the tokens [rows, D], dense; PAST is in it
    PART,  # out: what this program's rows give to the gradients of weight and bias, float32 [programs, 2, D], dense;
    # with PAST [programs, 3, D]: its sum comes first
    rows,
    steps,  # of ROWS tokens, a program
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Go back through the norm: one program takes ``steps`` times ROWS tokens, one after the other."""
    cols = tl.arange(0, BLOCK_D)
    column = cols < D
    weight = tl.load(WEIGHT + cols, mask=column, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, BLOCK_D), tl.float32)
    dbias = tl.zeros((ROWS, BLOCK_D), tl.float32)
    dpast = tl.zeros((ROWS, BLOCK_D), tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps
    for step in range(steps):
        # Load
        r = (first + step) * ROWS + tl.arange(0, ROWS)
        inside = (r[:, None] < rows) & column[None, :]
        at = r[:, None] * D + cols[None, :]
        g = tl.load(G + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(MEAN + r, mask=r < rows, other=0.0)
        rstd = tl.load(RSTD + r, mask=r < rows, other=0.0)

        # Compute: what is left of the gradient across the mean and the deviation
        x = tl.where(inside, (x - mean[:, None]) * rstd[:, None], 0.0)
        dweight += g * x
        dbias += g
        g = g * weight[None, :]
        along = tl.sum(g * x, 1) / D
        g = (g - (tl.sum(g, 1) / D)[:, None] - x * along[:, None]) * rstd[:, None]
        if PAST is not None:
            past = tl.load(PAST + at, mask=inside, other=0.0).to(tl.float32)
            dpast += past
            g += past
        tl.store(DX + at, g.to(DX.dtype.element_ty), mask=inside)
    if PAST is not None:
        part = PART + tl.program_id(0) * 3 * D + cols
        tl.store(part, tl.sum(dpast, 0), mask=column)
        part += D
    else:
        part = PART + tl.program_id(0) * 2 * D + cols
    tl.store(part, tl.sum(dweight, 0), mask=column)
    tl.store(part + D, tl.sum(dbias, 0), mask=column)


@triton.jit
def relu_backward_kernel(
    G,  # in: gradient of the hidden activation [rows, columns], dense; out: that of what is before the ReLU
    HIDDEN,  # in: the hidden activation [rows, columns], dense
    PART,  # out: sums over this program's rows, float32 [programs, columns], dense
    rows,
    columns,
    steps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Go back through ReLU and bias: one program takes COLUMNS columns of ``steps`` times ROWS rows."""
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.program_id(1).to(tl.int64) * steps
    for step in range(steps):
        r = (first + step) * ROWS + tl.arange(0, ROWS)
        inside = (r[:, None] < rows) & (cols[None, :] < columns)
        at = r[:, None] * columns + cols[None, :]
        g = tl.load(G + at, mask=inside, other=0.0)
        hidden = tl.load(HIDDEN + at, mask=inside, other=0.0)
        g = tl.where(hidden <= 0, 0.0, g)  # a nan passes
        tl.store(G + at, g, mask=inside)
        total += g.to(tl.float32)
    tl.store(PART + tl.program_id(1) * columns + cols, tl.sum(total, 0), mask=cols < columns)


@triton.jit
def sum_parts_kernel(
    PART,  # in: float32 [programs, columns], dense
    NARROW,  # out: sums of the first ``narrow`` columns, any dtype
    WIDE,  # out: sums of the others, float32
    programs,
    narrow,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add up what the programs of a kernel have left, in a fixed order: one program takes COLUMNS columns."""
    cols = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, programs, ROWS):
        r = start + tl.arange(0, ROWS)
        inside = (r[:, None] < programs) & (cols[None, :] < columns)
        total += tl.load(PART + r[:, None] * columns + cols[None, :], mask=inside, other=0.0)
    total = tl.sum(total, 0)
    tl.store(NARROW + cols, total.to(NARROW.dtype.element_ty), mask=cols < narrow)
    tl.store(WIDE + cols - narrow, total, mask=(cols >= narrow) & (cols < columns))


def norm_plan(D: int) -> dict[str, int]:
    """Return the tile of a norm's kernels: 16 numbers a thread, so that no register spills."""
    block = triton.next_power_of_2(D)
    warps = 4 if block <= 2048 else 8 if block == 4096 else 16
    return {"BLOCK_D": block, "ROWS": max(1, 2048 // block), "num_warps": warps}


def _shares(rows: int, tile: int) -> tuple[int, int]:
    """Return (programs, steps each) that take ``tile`` rows at a time."""
    steps = triton.cdiv(triton.cdiv(rows, tile), _PROGRAMS)
    return triton.cdiv(triton.cdiv(rows, tile), steps), steps


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return layer_norm(x) in ``dtype`` [..., D], and mean and 1 / standard deviation, float32 [rows]."""
    return _normalise(x, None, weight, bias, eps, dtype)[1:]


def add_and_normalise(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x + branch [..., D], and of that what ``normalise`` returns, in the dtype of x."""
    return _normalise(x, branch, weight, bias, eps, x.dtype)


def _normalise(x, branch, weight, bias, eps, dtype):
    x = x.contiguous()
    D, rows = x.shape[-1], x.numel() // x.shape[-1]
    added = x if branch is None else torch.empty_like(x)
    y = torch.empty_like(x, dtype=dtype)
    mean, rstd = torch.empty(2, rows, dtype=torch.float32, device=x.device).unbind()
    if rows:
        plan = norm_plan(D)
        given = (x, None) if branch is None else (x, branch.contiguous())
        made = (None if branch is None else added, y, mean, rstd)
        with torch.cuda.device_of(x):
            grid = (triton.cdiv(rows, plan["ROWS"]),)
            norm_kernel[grid](*given, weight.contiguous(), bias.contiguous(), *made, rows, eps, D=D, **plan)
    return added, y, mean, rstd


def normalise_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, in its dtype, and of weight and bias, float32; ``grad`` is any dtype, of x's size."""
    dx, parts = _normalise_backward(grad, x, mean, rstd, weight, None)
    return dx, *parts.sum(0).view(2, -1).unbind()


def normalise_backward_add(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, past: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, with ``past`` added, and of weight and bias, and the sum of ``past`` over rows.

    ``past`` [..., D] is the gradient that reaches x without passing the norm; its sum has its dtype.
    """
    dx, parts = _normalise_backward(grad, x, mean, rstd, weight, past.contiguous())
    total, affine = _sum_parts(parts, x.shape[-1], past.dtype)
    return dx, *affine.view(2, -1).unbind(), total


def _normalise_backward(grad, x, mean, rstd, weight, past):
    x, grad = x.contiguous(), grad.contiguous()
    D, rows = x.shape[-1], x.numel() // x.shape[-1]
    columns = (2 if past is None else 3) * D
    dx = torch.empty_like(x)
    if not rows:
        return dx, torch.zeros(1, columns, dtype=torch.float32, device=x.device)
    plan = norm_plan(D)
    programs, steps = _shares(rows, plan["ROWS"])
    parts = torch.empty(programs, columns, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        norm_backward_kernel[(programs,)](
            grad, x, weight.contiguous(), mean, rstd, past, dx, parts, rows, steps, D=D, **plan
        )
    return dx, parts


def _sum_parts(parts: Tensor, narrow: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the sums of the first ``narrow`` columns in ``dtype``, and of the others in float32."""
    programs, columns = parts.shape
    first = torch.empty(narrow, dtype=dtype, device=parts.device)
    others = torch.empty(columns - narrow, dtype=torch.float32, device=parts.device)
    with torch.cuda.device_of(parts):
        sum_parts_kernel[(triton.cdiv(columns, _SUM_COLUMNS),)](
            parts, first, others, programs, narrow, columns, ROWS=_SUM_ROWS, COLUMNS=_SUM_COLUMNS
        )
    return first, others


def relu_backward(grad: Tensor, hidden: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradient before the ReLU, [rows, columns] in place of ``grad``, and its sum over rows in ``dtype``."""
    rows, columns = grad.shape
    if not grad.numel():
        return grad, torch.zeros(columns, dtype=dtype, device=grad.device)
    programs, steps = _shares(rows, 16 * _RELU_ROWS)
    steps *= 16
    parts = torch.empty(programs, columns, dtype=torch.float32, device=grad.device)
    with torch.cuda.device_of(grad):
        relu_backward_kernel[(triton.cdiv(columns, _RELU_COLUMNS), programs)](
            grad, hidden.contiguous(), parts, rows, columns, steps, ROWS=_RELU_ROWS, COLUMNS=_RELU_COLUMNS
        )
    return grad, _sum_parts(parts, columns, dtype)[0]
