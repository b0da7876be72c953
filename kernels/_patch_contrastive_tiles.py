"""The Triton kernels of patch_contrastive_loss; what they are for, and how tokens are laid out, is said there."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
_NO_DIRECTION = tl.constexpr(1e-12)  # a token with a norm up to this has no direction: its unit token is zero
GROUP = tl.constexpr(8)  # tiles a side of what neighbouring programs share in the L2 cache


@triton.jit
def pair(program, count):
    """Return the program's pair first <= second < count, GROUP x GROUP of them after each other.

    Some programs are left over: of them, first > second or second >= count. Row r of groups and row ``groups - 1 - r``
    have together as many as every other two.
    """
    groups = tl.cdiv(count, GROUP)
    group, inside = program // (GROUP * GROUP), program % (GROUP * GROUP)
    even = 1 - groups % 2
    row, at = group // (groups + even), group % (groups + even)
    second_row = at >= groups - row
    first = tl.where(second_row, groups - row - even, row)
    second = tl.where(second_row, at - even, row + at)
    return first * GROUP + inside % GROUP, second * GROUP + inside // GROUP


@triton.jit
def row_of(i, j, chunks, IMAGES: tl.constexpr, BLOCK: tl.constexpr):
    """Return where position ``i`` of image ``j`` lies: tile by tile, in a tile position by position."""
    POSITIONS: tl.constexpr = BLOCK // IMAGES
    tile = (i // POSITIONS) * chunks + j // IMAGES
    return tile.to(tl.int64) * BLOCK + (i % POSITIONS) * IMAGES + j % IMAGES


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
    X,  # in: features [images, N, D], dense
    U,  # out: unit tokens [tiles * BLOCK, DP], dense, zero where no token lies
    SUMS,  # out: sums of ROWS unit tokens, float32 [images, parts, D], dense; or None
    N,
    chunks,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise: one program makes ROWS unit tokens of one image."""
    # Load and normalise
    parts = tl.cdiv(N, ROWS)
    b = tl.program_id(0) // parts
    rows = (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    u, _ = unit_rows(X + b.to(tl.int64) * N * D, rows, N, D, BLOCK_D)

    # Store
    at = U + row_of(rows, b, chunks, IMAGES, BLOCK)[:, None] * DP + cols[None, :]
    tl.store(at, u.to(U.dtype.element_ty), mask=(rows[:, None] < N) & (cols[None, :] < DP))
    if SUMS is not None:
        tl.store(SUMS + tl.program_id(0).to(tl.int64) * D + cols, tl.sum(u, 0), mask=cols < D)


@triton.jit
def cosines(
    A,  # unit tokens of a tile [BLOCK, DP], dense
    C,  # unit tokens of a tile [BLOCK, DP], dense
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the cosines [BLOCK, BLOCK] between the tokens of two tiles."""
    at = tl.arange(0, BLOCK)[:, None] * DP + tl.arange(0, BLOCK_D)[None, :]
    cosine = tl.zeros((BLOCK, BLOCK), tl.float32)
    for d in range(0, DP, BLOCK_D):
        cosine = tl.dot(tl.load(A + at + d), tl.trans(tl.load(C + at + d)), cosine, input_precision=PRECISION)
    return cosine


@triton.jit
def sums_kernel(
    A,  # in: unit tokens of the anchors [tiles * BLOCK, DP], dense
    C,  # in: unit tokens of the negatives [tiles * BLOCK, DP], dense; the anchors' where OWN
    S,  # out: sums over the negatives, float32 [N, N, B], dense; added to where not OWN
    B,
    a_chunks,
    K,  # images that are negatives
    c_chunks,
    N,
    DP: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum over the negatives: one program makes S[i1, i2] of POSITIONS positions i1 and POSITIONS i2.

    Where OWN, it makes S[i2, i1], too, the sums of the columns of the same matrix of cosines, and goes by i1 <= i2.
    """
    # Which positions
    POSITIONS: tl.constexpr = BLOCK // IMAGES
    count = tl.cdiv(N, POSITIONS)
    if OWN:
        first, second = pair(tl.program_id(0), count)
        if (first > second) | (second >= count):
            return
    else:
        first, second = tl.program_id(0) % count, tl.program_id(0) // count
    lanes, few = tl.arange(0, BLOCK), tl.arange(0, POSITIONS)
    i1, i2 = first * POSITIONS + lanes // IMAGES, second * POSITIONS + few  # of rows and their sums
    at_rows = S + (i1[:, None].to(tl.int64) * N + i2[None, :]) * B  # [BLOCK, POSITIONS]
    i1, i2 = first * POSITIONS + few, second * POSITIONS + lanes // IMAGES  # of columns and their sums
    at_columns = S + (i2[None, :].to(tl.int64) * N + i1[:, None]) * B  # [POSITIONS, BLOCK]
    inside_rows = (first * POSITIONS + lanes // IMAGES < N)[:, None] & (second * POSITIONS + few < N)[None, :]
    inside_columns = (i1 < N)[:, None] & (i2 < N)[None, :]

    for chunk_j in range(a_chunks):
        j = chunk_j * IMAGES + lanes % IMAGES
        rows = A + (first * a_chunks + chunk_j).to(tl.int64) * (BLOCK * DP)
        total = tl.zeros((BLOCK, POSITIONS), tl.float32)
        for chunk_k in range(c_chunks):
            # Compute. No cosine leaves the chip.
            k = chunk_k * IMAGES + lanes % IMAGES
            columns = C + (second * c_chunks + chunk_k).to(tl.int64) * (BLOCK * DP)
            p = tl.exp2(cosines(rows, columns, DP, BLOCK, BLOCK_D, PRECISION) * LOG2E)
            negative = (j[:, None] < B) & (k[None, :] < K)
            if OWN:
                negative &= j[:, None] != k[None, :]
            p = tl.where(negative, p, 0.0)
            total += tl.sum(tl.reshape(p, (BLOCK, POSITIONS, IMAGES)), 2)
            if OWN:  # noqa: SIM102  (a constant: without it there is no code)
                if first < second:
                    # Only this program reads or writes these sums, one chunk after the other.
                    mirrored = tl.sum(tl.reshape(p, (POSITIONS, IMAGES, BLOCK)), 1)
                    mask = inside_columns & (k[None, :] < K)
                    if chunk_j > 0:
                        tl.debug_barrier()
                        mirrored += tl.load(at_columns + k[None, :], mask=mask, other=0.0)
                    tl.store(at_columns + k[None, :], mirrored, mask=mask)

        # Store
        mask = inside_rows & (j[:, None] < B)
        if not OWN:
            total += tl.load(at_rows + j[:, None], mask=mask, other=0.0)
        tl.store(at_rows + j[:, None], total, mask=mask)


@triton.jit
def logs_kernel(
    S,  # in: sums over the negatives, float32 [pairs, B], dense
    LOGS,  # out: sums of log S over PAIRS pairs of positions, float32 [parts, B], dense
    pairs,
    B,
    PAIRS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Sum the logarithms: one program takes IMAGES images."""
    rows = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    images = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    inside = (rows[:, None] < pairs) & (images[None, :] < B)
    logs = tl.log2(tl.load(S + rows[:, None] * B + images[None, :], mask=inside, other=1.0))
    tl.store(LOGS + tl.program_id(0).to(tl.int64) * B + images, tl.sum(logs, 0) / LOG2E, mask=images < B)


@triton.jit
def coefficients(
    S,  # sums [images / B, N, N, B], dense
    Q,  # gradient of each log S [images], dense
    j,  # images
    i1,  # positions of the tokens
    i2,  # positions they meet
    inside,
    N,
    B,  # images that a rank has
    negatives,  # images that are summed over
):
    """Load the softmax coefficients negatives Q / S[i1, i2], zero outside."""
    at = ((j // B).to(tl.int64) * N * N + i1 * N + i2) * B + j % B
    return tl.load(Q + j, mask=inside, other=0.0) * (negatives / tl.load(S + at, mask=inside, other=1.0))


@triton.jit
def weights_kernel(
    A,  # in: unit tokens of the anchors [tiles * BLOCK, DP], dense
    C,  # in: unit tokens of the negatives [tiles * BLOCK, DP], dense
    SA,  # in: sums of the anchors, float32 [1, N, N, B], dense
    SC,  # in: sums of the negatives, float32 [K / B, N, N, B], dense
    QA,  # in: gradients of the anchors' log S, relative to the largest, float32 [B]
    QC,  # in: those of the negatives, float32 [K]
    W,  # out: weights [rows * BLOCK, columns * BLOCK], dense, in the dtype of A
    first_a,
    first_c,
    rows,  # tiles of the block, from first_a
    columns,  # tiles of the block, from first_c
    B,
    a_chunks,
    K,
    c_chunks,
    N,
    negatives,  # images that an anchor's sums are over
    DP: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OWN: tl.constexpr,  # the negatives are the anchors
    SYMMETRIC: tl.constexpr,  # so are the rows and the columns of the block: half of it is computed
    PRECISION: tl.constexpr,
):
    """Weigh the negatives: one program makes a tile of W = exp(cosine) (c[i1, i2, j] + c[i2, i1, k]).

    c = negatives Q / S; W is 0 where k is j and where no token lies.
    """
    # Which tile
    POSITIONS: tl.constexpr = BLOCK // IMAGES
    if SYMMETRIC:
        row, column = pair(tl.program_id(0), rows)
        if (row > column) | (column >= rows):
            return
    else:  # programs that run together share their columns
        row, column = tl.program_id(0) % rows, tl.program_id(0) // rows
    tile_a, tile_c = first_a + row, first_c + column
    a = A + tile_a.to(tl.int64) * (BLOCK * DP)
    c = C + tile_c.to(tl.int64) * (BLOCK * DP)
    p = tl.exp2(cosines(a, c, DP, BLOCK, BLOCK_D, PRECISION) * LOG2E)

    # Weigh. An image's coefficient is one for all tokens that a token meets at a position.
    lanes, few = tl.arange(0, BLOCK), tl.arange(0, POSITIONS)
    j, k = (tile_a % a_chunks) * IMAGES + lanes % IMAGES, (tile_c % c_chunks) * IMAGES + lanes % IMAGES
    start1, start2 = (tile_a // a_chunks) * POSITIONS, (tile_c // c_chunks) * POSITIONS
    i1, i2 = start1 + lanes // IMAGES, start2 + few
    inside = ((i1 < N) & (j < B))[:, None] & (i2 < N)[None, :]
    by_row = coefficients(SA, QA, j[:, None], i1[:, None], i2[None, :], inside, N, B, negatives)  # [BLOCK, POSITIONS]
    i1, i2 = start1 + few, start2 + lanes // IMAGES
    inside = (i1 < N)[:, None] & ((i2 < N) & (k < K))[None, :]
    by_column = coefficients(SC, QC, k[None, :], i2[None, :], i1[:, None], inside, N, B, negatives)
    # [POSITIONS, BLOCK]
    by_row = tl.reshape(tl.broadcast_to(by_row[:, :, None], (BLOCK, POSITIONS, IMAGES)), (BLOCK, BLOCK))
    by_column = tl.reshape(tl.broadcast_to(by_column[:, None, :], (POSITIONS, IMAGES, BLOCK)), (BLOCK, BLOCK))
    w = p * (by_row + by_column)
    if OWN:
        w = tl.where(j[:, None] == k[None, :], 0.0, w)
    w = w.to(W.dtype.element_ty)

    # Store
    width = columns * BLOCK
    tl.store(W + (row * BLOCK + lanes[:, None]).to(tl.int64) * width + column * BLOCK + lanes[None, :], w)
    if SYMMETRIC:  # noqa: SIM102  (a constant, too)
        if row < column:
            at = W + (column * BLOCK + lanes[:, None]).to(tl.int64) * width + row * BLOCK + lanes[None, :]
            tl.store(at, tl.trans(w))


@triton.jit
def unit_backward_kernel(
    G,  # in: relative gradient of the unit tokens by the negatives, float32 [tiles * BLOCK, DP], dense
    X,  # in: features [B, N, D], dense
    TOKEN_SUM,  # in: sums of unit tokens, float32 [B, D], dense
    LOG_GRAD,  # in: gradients of each log S of an image, float32 [B]
    LARGEST,  # in: of these and the negatives', float32 [1]
    OUT,  # out: gradient of the features [B, N, D], dense
    N,
    chunks,
    negatives,  # G is in units of LARGEST / negatives
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Go back through the norm: one program makes the gradient of ROWS tokens of one image."""
    # Load
    parts = tl.cdiv(N, ROWS)
    b = tl.program_id(0) // parts
    rows = (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < N) & (cols[None, :] < D)
    image = b.to(tl.int64) * N * D
    u, inverse = unit_rows(X + image, rows, N, D, BLOCK_D)
    at = G + row_of(rows, b, chunks, IMAGES, BLOCK)[:, None] * DP + cols[None, :]
    g = tl.load(at, mask=inside, other=0.0) * (tl.load(LARGEST) / negatives)

    # Add what the positives give, |TOKEN_SUM|^2; compute the part across each token, and store it
    positive = tl.load(TOKEN_SUM + b.to(tl.int64) * D + cols, mask=cols < D, other=0.0)
    g -= (2.0 * tl.load(LOG_GRAD + b)) * positive[None, :]
    g = (g - u * tl.sum(g * u, 1)[:, None]) * inverse
    tl.store(OUT + image + rows[:, None] * D + cols[None, :], g.to(OUT.dtype.element_ty), mask=inside)
