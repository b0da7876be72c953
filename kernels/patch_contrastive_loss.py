"""Contrastive loss between the patches of a batch: kernels and launchers.

B images with N tokens of D features are the anchors; the bank holds K >= B images, the anchors first (the others come
from other ranks). u are unit tokens, zero-padded to NP tokens and DP features, multiples of the tiles, so that the
GEMMs need no masks. S[j, i1, i2] = sum over k != j of exp(u[j, i1] . u[k, i2]), [B, N, N].

Forward: a program keeps one tile of S[j] on chip while k runs over the bank; no cosine leaves the chip. The matrix of
cosines is symmetric, but a program that used a tile for S[k] as well would have to add it to memory, atomically:
256 KB of atomic float32 traffic per pair of images against a GEMM of 75 MFLOP, which take about the same time,
and the order of the sums would change from run to run.

Backward: with P = exp(cosine), recomputed, and COEF = (gradient of log S) / S, token (j, i1) gets
sum_{k != j, i2} P (COEF[j, i1, i2] + COEF[k, i2, i1]) u[k, i2]. These weights go to memory for a few images at a time,
a block that stays in the L2 cache, and the vendor library multiplies it with u: the accumulators of one fused kernel,
[tokens, D] in float32, would leave room for 64 tokens a program only and read u from L2 twice as often.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
_NO_DIRECTION = tl.constexpr(1e-12)  # a token with a norm up to this has no direction: its unit token is zero

_BLOCK_BYTES = 16 << 20  # weights in memory at a time: a third of the L2 cache of the GPUs this is for
_BLOCK_ROWS = 4096  # tokens in the rows of such a block


@triton.jit
def unit_rows(
    X,  # features of one image [N, D], dense
    rows,  # the tokens taken
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Load unit tokens [rows, BLOCK_D] and inverse norms [rows, 1] in float32; zero beyond N rows and D columns.

    A norm that is inf or nan makes the inverse nan, which no later step hides.
    """
    cols = tl.arange(0, BLOCK_D)
    x = tl.load(X + rows[:, None] * D + cols[None, :], mask=(rows[:, None] < N) & (cols[None, :] < D), other=0.0)
    x = x.to(tl.float32)
    norm = tl.sqrt_rn(tl.sum(x * x, 1))[:, None]
    norm = tl.where(norm == float("inf"), float("nan"), norm)
    zero = norm <= _NO_DIRECTION
    inverse = tl.where(zero, 0.0, 1.0 / tl.where(zero, 1.0, norm))
    return x * inverse, inverse


@triton.jit
def unit_kernel(
    X,  # in: features [B, N, D], dense
    U,  # out: unit tokens [B, NP, DP], dense, zero-padded
    SUMS,  # out: sums of ROWS unit tokens, float32 [B, NP / ROWS, D], dense; or None
    N,
    NP,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Normalise: one program makes ROWS unit tokens of one image."""
    # Load and normalise
    parts = NP // ROWS
    b = (tl.program_id(0) // parts).to(tl.int64)
    rows = (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    u, _ = unit_rows(X + b * N * D, rows, N, D, BLOCK_D)

    # Store
    at = U + b * NP * DP + rows[:, None] * DP + cols[None, :]
    tl.store(at, u.to(U.dtype.element_ty), mask=cols[None, :] < DP)
    if SUMS is not None:
        tl.store(SUMS + tl.program_id(0).to(tl.int64) * D + cols, tl.sum(u, 0), mask=cols < D)


@triton.jit
def sums_kernel(
    U,  # in: unit tokens [K, NP, DP], dense
    S,  # out: sums over the negatives, float32 [B, N, N], dense
    LOGS,  # out: sum of log S over each tile, float32 [B, tiles], dense
    K,
    N,
    NP,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN: tl.constexpr,  # N is NP: no masks
    PRECISION: tl.constexpr,
):
    """Sum over the negatives: one program makes a tile [BLOCK, BLOCK] of S[j]."""
    # Which tile of which image
    tiles = NP // BLOCK
    tile = tl.program_id(0) % (tiles * tiles)
    j = tl.program_id(0) // (tiles * tiles)
    i1 = (tile // tiles) * BLOCK + tl.arange(0, BLOCK)
    i2 = (tile % tiles) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.arange(0, BLOCK_D)
    image = NP.to(tl.int64) * DP
    rows_j = U + j * image + i1[:, None] * DP + cols[None, :]
    rows_k = U + i2[:, None] * DP + cols[None, :]

    # Compute. One loop over images and features, not two: the loads for the next image run during the GEMM of this one.
    STEPS: tl.constexpr = DP // BLOCK_D
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    cosine = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range((K - 1) * STEPS):
        k = step // STEPS
        k += (k >= j).to(tl.int32)  # the images but j
        d = (step % STEPS) * BLOCK_D
        a = tl.load(rows_j + d)  # [i1, d]
        b = tl.load(rows_k + (k * image + d))  # [i2, d]
        cosine = tl.dot(a, tl.trans(b), cosine, input_precision=PRECISION)
        if step % STEPS == STEPS - 1:
            total += tl.exp2(cosine * LOG2E)
            cosine = tl.zeros((BLOCK, BLOCK), tl.float32)

    # Store the sums and what the loss needs of them
    at = S + j.to(tl.int64) * N * N + i1[:, None] * N + i2[None, :]
    logs = tl.log2(total)
    if EVEN:
        tl.store(at, total)
    else:
        inside = (i1[:, None] < N) & (i2[None, :] < N)
        tl.store(at, total, mask=inside)
        logs = tl.where(inside, logs, 0.0)
    tl.store(LOGS + tl.program_id(0), tl.sum(tl.sum(logs, 1), 0) / LOG2E)


@triton.jit
def weights_kernel(
    U,  # in: unit tokens [K, NP, DP], dense
    COEF,  # in: softmax coefficients, float32 [K, N, N], dense
    LARGEST,  # in: the greatest |COEF|, float32 [1]
    W,  # out: weights [rows_j NP, rows_k NP], dense, in the dtype of U
    first_j,
    first_k,
    rows_j,  # images of the block, from first_j
    rows_k,  # images of the block, from first_k
    N,
    NP,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Weigh the negatives: one program makes a tile of W = P (COEF[j, i1, i2] + COEF[k, i2, i1]) / LARGEST.

    0 where k is j and beyond N.
    """
    # Programs that run together share their images k.
    tiles = NP // BLOCK
    row = tl.program_id(0) % (rows_j * tiles)
    column = tl.program_id(0) // (rows_j * tiles)
    j, k = (first_j + row // tiles).to(tl.int64), (first_k + column // tiles).to(tl.int64)
    i1 = (row % tiles) * BLOCK + tl.arange(0, BLOCK)
    i2 = (column % tiles) * BLOCK + tl.arange(0, BLOCK)

    # Recompute the cosines
    cols = tl.arange(0, BLOCK_D)
    at_j = U + j * NP * DP + i1[:, None] * DP + cols[None, :]
    at_k = U + k * NP * DP + i2[:, None] * DP + cols[None, :]
    cosine = tl.zeros((BLOCK, BLOCK), tl.float32)
    for d in range(0, DP, BLOCK_D):
        cosine = tl.dot(tl.load(at_j + d), tl.trans(tl.load(at_k + d)), cosine, input_precision=PRECISION)

    # Scale. Divided by the greatest |COEF|, weights fit into float16 whatever the number of images and the loss scale.
    at_own = COEF + j * N * N + i1[:, None] * N + i2[None, :]
    at_other = COEF + k * N * N + i2[None, :] * N + i1[:, None]
    if EVEN:
        coefficients = tl.load(at_own) + tl.load(at_other)
    else:
        inside = (i1[:, None] < N) & (i2[None, :] < N)
        coefficients = tl.load(at_own, mask=inside, other=0.0) + tl.load(at_other, mask=inside, other=0.0)
    largest = tl.load(LARGEST)
    w = tl.exp2(cosine * LOG2E) * (coefficients * tl.where(largest == 0.0, 0.0, 1.0 / largest))
    w = tl.where(j == k, 0.0, w)

    # Store
    at = row * BLOCK + tl.arange(0, BLOCK)[:, None].to(tl.int64)
    tl.store(W + at * (rows_k * NP) + column * BLOCK + tl.arange(0, BLOCK)[None, :], w.to(W.dtype.element_ty))


@triton.jit
def norm_backward_kernel(
    G,  # in: gradient of the unit tokens by the negatives / LARGEST, float32 [B, NP, DP], dense
    X,  # in: features [B, N, D], dense
    POSITIVE,  # in: what the positives add to the gradient of each unit token of an image, float32 [B, D], dense
    LARGEST,  # in: float32 [1]
    OUT,  # out: gradient of the features [B, N, D], dense
    N,
    NP,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Go back through the norm: one program makes the gradient of ROWS tokens of one image."""
    # Load
    parts = NP // ROWS
    b = (tl.program_id(0) // parts).to(tl.int64)
    rows = (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < N) & (cols[None, :] < D)
    u, inverse = unit_rows(X + b * N * D, rows, N, D, BLOCK_D)
    g = tl.load(G + b * NP * DP + rows[:, None] * DP + cols[None, :], mask=inside, other=0.0)
    g = g * tl.load(LARGEST) + tl.load(POSITIVE + b * D + cols, mask=cols < D, other=0.0)[None, :]

    # Compute the part across each token, and store it
    g = (g - u * tl.sum(g * u, 1)[:, None]) * inverse
    tl.store(OUT + b * N * D + rows[:, None] * D + cols[None, :], g.to(OUT.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Plan:
    """Tile sizes of one call. Tokens are padded to a multiple of ``block`` and features to one of ``block_d``."""

    block: int
    block_d: int
    num_warps: int
    num_stages: int
    NP: int
    DP: int
    rows: int  # of the kernels that go token by token

    @property
    def block_of_features(self) -> int:
        return triton.next_power_of_2(self.DP)


def plan(B: int, N: int, D: int, dtype: torch.dtype, processors: int) -> Plan:
    """Choose tiles so that the compiled kernels spill nothing (``python -m bench.offline``), every multiprocessor has
    work and padding adds little.
    """
    if dtype == torch.float32:  # no tensor cores, or tf32: twice the bytes
        block, block_d, warps, stages = min(64, _power(N)), min(32, _power(D)), 4, 3
    else:
        block, block_d, warps, stages = min(64, _power(N)), min(64, _power(D)), 4, 4
        if N > 64 and -N % 128 == -N % 64 and B * triton.cdiv(N, 128) ** 2 >= processors:
            block, warps, stages = 128, 8, 3
    NP, DP = triton.cdiv(N, block) * block, triton.cdiv(D, block_d) * block_d
    return Plan(block, block_d, warps, stages, NP, DP, max(1, min(16, 8192 // triton.next_power_of_2(DP))))


def _power(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _plan(features: Tensor, dtype: torch.dtype) -> Plan:
    device = features.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return plan(*features.shape, dtype, processors)


def _bank(features: Tensor, others: Tensor | None, p: Plan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make unit tokens [K, NP, DP] in ``dtype``, and the sum of each anchor's unit tokens [B, D] float32."""
    B, N, D = features.shape
    u = torch.empty(B + (0 if others is None else len(others)), p.NP, p.DP, dtype=dtype, device=features.device)
    parts = p.NP // p.rows
    token_sums = torch.empty(B, parts, D, dtype=torch.float32, device=features.device)
    sizes = {"D": D, "DP": p.DP, "BLOCK_D": p.block_of_features, "ROWS": p.rows}
    unit_kernel[(B * parts,)](features.contiguous(), u, token_sums, N, p.NP, **sizes)
    if others is not None:
        unit_kernel[(len(others) * parts,)](others.contiguous(), u[B:], None, N, p.NP, **sizes)
    return u, token_sums.sum(1)


def _options(p: Plan, N: int, precision: str) -> dict[str, object]:
    return {
        **{"DP": p.DP, "BLOCK": p.block, "BLOCK_D": p.block_d, "EVEN": N == p.NP, "PRECISION": precision},
        **{"num_warps": p.num_warps, "num_stages": p.num_stages},
    }


def patch_contrastive_forward(
    features: Tensor, others: Tensor | None, dtype: torch.dtype, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums over the negatives, their logarithms' means, and the tokens' sums.

    Args:
        features: [B, N, D] float16, bfloat16 or float32.
        others: [K - B, N, D], images that are negatives only, or None.
        dtype: of the unit tokens in the GEMMs.
        precision: of float32 GEMMs, "ieee" or "tf32".

    Returns:
        S [B, N, N], the mean of log S [B] and the sum of unit tokens [B, D], float32.
    """
    B, N, _ = features.shape
    p = _plan(features, dtype)
    with torch.cuda.device_of(features):
        u, token_sum = _bank(features, others, p, dtype)
        tiles = (p.NP // p.block) ** 2
        sums = torch.empty(B, N, N, dtype=torch.float32, device=features.device)
        logs = torch.empty(B, tiles, dtype=torch.float32, device=features.device)
        sums_kernel[(B * tiles,)](u, sums, logs, len(u), N, p.NP, **_options(p, N, precision))
    return sums, logs.sum(1) / N**2, token_sum


def patch_contrastive_backward(
    features: Tensor,
    coefficients: Tensor,
    positive_grad: Tensor,
    others: Tensor | None,
    dtype: torch.dtype,
    precision: str,
) -> Tensor:
    """Return the gradient of the features, [B, N, D] in their dtype.

    Args:
        features, others, dtype, precision: as in the forward.
        coefficients: [K, N, N] float32, the gradient of each log S divided by S, of the others too.
        positive_grad: [B, D] float32, what the positives add to the gradient of each unit token of an image.
    """
    B, N, D = features.shape
    features, coefficients, positive_grad = features.contiguous(), coefficients.contiguous(), positive_grad.contiguous()
    p = _plan(features, dtype)
    grad = torch.empty_like(features)
    largest = coefficients.abs().amax().reshape(1)
    parts = p.NP // p.rows
    with torch.cuda.device_of(features):
        u, _ = _bank(features, others, p, dtype)
        rows = max(1, min(B, _BLOCK_ROWS // p.NP))
        columns = max(1, min(len(u), _BLOCK_BYTES // (rows * p.NP * p.NP * u.element_size())))
        for j in range(0, B, rows):
            anchors = features[j : j + rows]
            g = torch.zeros((len(anchors) * p.NP, p.DP), dtype=torch.float32, device=features.device)
            for k in range(0, len(u), columns):
                negatives = u[k : k + columns]
                w = u.new_empty(len(anchors) * p.NP, len(negatives) * p.NP)
                sizes = (j, k, len(anchors), len(negatives), N, p.NP)
                grid = (w.numel() // p.block**2,)
                weights_kernel[grid](u, coefficients, largest, w, *sizes, **_options(p, N, precision))
                g += _matmul(w, negatives.flatten(0, 1))
            norm_backward_kernel[(len(anchors) * parts,)](
                g, anchors, positive_grad[j : j + rows], largest, grad[j : j + rows], N, p.NP,
                D=D, DP=p.DP, BLOCK_D=p.block_of_features, ROWS=p.rows,
            )  # fmt: skip
    return grad


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a b in float32, whatever the inputs."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()
