"""A collapsed pixelshuffle tail in one pass: convolution, the exact frame, bias and PixelShuffle in the store.

B images of H x W cells with C features; a cell's output is P = O R R values: R x R pixels of O channels. Cells near the
border have kernels of their own: ``frame`` classes at either end of an axis and one for the inside. A program takes
BLOCK_M cells of one class, so all programs run the same GEMM, [BLOCK_M, taps C] x [taps C, P], and differ in which
cells and which kernel they take. The features are read in channels-last order, 128 bytes a cell at 64 features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F


@triton.jit
def tail_kernel(
    X,  # in: features [B, H, W, C], strides (x_batch, x_row, x_column, 1)
    KERNELS,  # in: [classes y, classes x, taps y, taps x, C, P], dense
    BIAS,  # in: [classes y, classes x, P], dense
    OUT,  # out: [B, O, R H, R W], dense
    x_batch,
    x_row,
    x_column,
    B,
    H,
    W,
    C,  # a multiple of BLOCK_C
    P,  # O R R
    FRAME_Y: tl.constexpr,  # classes at either end of the rows
    FRAME_X: tl.constexpr,
    REACH_Y: tl.constexpr,  # cells that a kernel sees to either side
    REACH_X: tl.constexpr,
    R: tl.constexpr,  # pixels a cell, along one side
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute BLOCK_P values of BLOCK_M cells of one class."""
    # Which class: the inside first, then each class of the border in as many programs as the longest of them needs
    i = tl.program_id(0)
    rows, columns = H - 2 * FRAME_Y, W - 2 * FRAME_X
    across: tl.constexpr = 2 * FRAME_X + 1
    middle: tl.constexpr = FRAME_Y * across + FRAME_X
    inside = tl.cdiv(B * rows * columns, BLOCK_M)
    edge = tl.cdiv(B * tl.maximum(rows, columns), BLOCK_M)
    n = (i - inside) // edge
    place = tl.where(i < inside, middle, tl.where(n < middle, n, n + 1))
    i = tl.where(i < inside, i, (i - inside) % edge)
    class_y, class_x = place // across, place % across

    # Which cells of it
    high = tl.where(class_y == FRAME_Y, rows, 1)
    wide = tl.where(class_x == FRAME_X, columns, 1)
    top = tl.where(class_y <= FRAME_Y, class_y, H - (2 * FRAME_Y + 1) + class_y)
    left = tl.where(class_x <= FRAME_X, class_x, W - (2 * FRAME_X + 1) + class_x)
    if i * BLOCK_M >= B * high * wide:  # a shorter class
        return
    m = i * BLOCK_M + tl.arange(0, BLOCK_M)
    b = m // (high * wide)
    y = top + m // wide % high
    x = left + m % wide
    mine = b < B
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    taps_y: tl.constexpr = 2 * REACH_Y + 1
    taps_x: tl.constexpr = 2 * REACH_X + 1
    X += b.to(tl.int64) * x_batch
    KERNELS += place * (taps_y * taps_x) * C * P

    # Compute, tap by tap: what a tap reads is mostly what the one before it read, and lies in the cache
    total = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for tap in range(taps_y * taps_x):
        yy = y + tap // taps_x - REACH_Y
        xx = x + tap % taps_x - REACH_X
        seen = mine & (yy >= 0) & (yy < H) & (xx >= 0) & (xx < W)
        cells = X + yy * x_row + xx * x_column
        for first in range(0, C, BLOCK_C):
            features = tl.load(cells[:, None] + (first + c)[None, :], mask=seen[:, None], other=0.0)
            weights = KERNELS + (tap * C + first + c)[:, None] * P + p[None, :]
            weights = tl.load(weights, mask=p[None, :] < P, other=0.0)
            total = tl.dot(features, weights, total, input_precision=PRECISION)
    total += tl.load(BIAS + place * P + p, mask=p < P, other=0.0).to(tl.float32)[None, :]

    # Store with PixelShuffle: value (o, a, e) of cell (y, x) is pixel (R y + a, R x + e) of channel o
    channel, a, e = p // (R * R), p // R % R, p % R
    line = (b.to(tl.int64) * (P // (R * R)))[:, None] + channel[None, :]
    line = line * (R * H) + (R * y)[:, None] + a[None, :]
    target = OUT + line * (R * W) + (R * x)[:, None] + e[None, :]
    tl.store(target, total.to(OUT.dtype.element_ty), mask=mine[:, None] & (p[None, :] < P))


def plan(C: int, P: int, dtype: torch.dtype) -> dict[str, int]:
    """Choose tile sizes and warps: the fewest columns that hold P, so that the features are read once."""
    block_p = min(64, max(16, triton.next_power_of_2(P)))
    block_c = 64 if C > 32 and dtype != torch.float32 else 32 if C > 16 else 16
    return {"BLOCK_M": 128, "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": 8, "num_stages": 2}


def pixelshuffle_tail_forward(x: Tensor, kernels: Tensor, bias: Tensor, scale: int, frame: list[int]) -> Tensor:
    """Compute the tail of x [B, C, H, W]; kernels [classes y, classes x, taps y, taps x, C, P] and bias [.., .., P].

    x is copied to channels-last where it is not, and with zeros to a whole number of blocks of features. H and W must
    be at least ``2 * frame + 1``. Returns [B, P / scale^2, scale H, scale W] in the dtype of x, which is that of
    kernels and bias.
    """
    B, C, H, W = x.shape
    P = kernels.shape[-1]
    reach_y, reach_x = kernels.shape[2] // 2, kernels.shape[3] // 2
    sizes = plan(C, P, x.dtype)
    x = x.permute(0, 2, 3, 1)  # [B, H, W, C]
    if more := -C % sizes["BLOCK_C"]:  # with no features that are zero, the loads would be neither whole nor aligned
        x, kernels, C = F.pad(x, (0, more)), F.pad(kernels, (0, 0, 0, more)), C + more
    x = x if x.stride(3) == 1 else x.contiguous()
    out = x.new_empty(B, P // scale**2, scale * H, scale * W)
    frame_y, frame_x = frame
    rows, columns, block = H - 2 * frame_y, W - 2 * frame_x, sizes["BLOCK_M"]
    classes = (2 * frame_y + 1) * (2 * frame_x + 1)
    tiles = triton.cdiv(B * rows * columns, block) + (classes - 1) * triton.cdiv(B * max(rows, columns), block)
    with torch.cuda.device_of(x):
        tail_kernel[(tiles, triton.cdiv(P, sizes["BLOCK_P"]))](
            x, kernels, bias, out,
            x.stride(0), x.stride(1), x.stride(2), B, H, W, C, P,
            FRAME_Y=frame_y, FRAME_X=frame_x, REACH_Y=reach_y, REACH_X=reach_x, R=scale,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            **sizes,
        )  # fmt: skip
    return out
