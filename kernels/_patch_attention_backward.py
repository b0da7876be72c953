"""The backward kernels of patch_attention; their launcher is in ``patch_attention.py``.

With p the probabilities, recomputed from the saved lse, and g the gradient of out:

    dv = p^T g        ds = p (g v^T - delta) scale        dq = ds k        dk = ds^T q        delta = rowsum(g out)

``keys_kernel`` walks over the queries for a block of keys. Where that block is the whole head it makes dq on the way:
one pass, five matmuls, nothing added up across programs. Otherwise ``queries_kernel`` runs first, makes dq and leaves
delta.
"""

import triton
import triton.language as tl

from ipt_fast.kernels._patch_attention_tiles import add_dot, dot_heads, load_head, store_head, store_tile


@triton.jit
def row_delta(g0, g1, out0, out1, D1: tl.constexpr):
    """Return the sum over a row of g out, in float32."""
    delta = tl.sum(g0.to(tl.float32) * out0.to(tl.float32), 1)
    if D1 > 0:
        delta += tl.sum(g1.to(tl.float32) * out1.to(tl.float32), 1)
    return delta


@triton.jit
def queries_kernel(
    G,  # in: gradient of out [B, N, D], strides (g_batch, g_row, 1)
    Q,  # in: [B, N, D], strides (q_batch, q_row, 1)
    K,  # in: [B, M, D], strides (k_batch, k_row, 1)
    V,  # in: [B, M, D], strides (v_batch, v_row, 1)
    QE,  # in: q_embed [N, D], strides (qe_row, 1); or None
    KE,  # in: k_embed [M, D], strides (ke_row, 1); or None
    OUT,  # in: [B, N, D], strides (out_batch, out_row, 1)
    LSE,  # in: float32 [B, H, N], dense
    DELTA,  # out: rowsum(g out), float32 [B, H, N], dense
    DQ,  # out: [B, N, D], strides (dq_batch, dq_row, 1)
    g_batch, g_row, out_batch, out_row, q_batch, q_row, k_batch, k_row, v_batch, v_row, dq_batch, dq_row,
    dk_batch, dk_row, qe_row, ke_row,
    N, M, H, scale,
    d: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    EVEN_N: tl.constexpr, EVEN_M: tl.constexpr,
):  # fmt: skip
    """Compute dq and delta of BLOCK_N queries of one head of one image."""
    # Which image, head and queries
    blocks = tl.cdiv(N, BLOCK_N)
    n = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(0) // blocks
    h = head % H
    b = (head // H).to(tl.int64)
    K += b * k_batch + h * d
    V += b * v_batch + h * d
    if QE is not None:
        QE += h * d
    if KE is not None:
        KE += h * d
    LSE += head.to(tl.int64) * N
    DELTA += head.to(tl.int64) * N

    # Load what belongs to the queries
    q0, q1 = load_head(Q + b * q_batch + h * d, q_row, QE, qe_row, n, N, d, D0, D1, EVEN_N)  # [n, d]
    g0, g1 = load_head(G + b * g_batch + h * d, g_row, None, 0, n, N, d, D0, D1, EVEN_N)  # [n, d]
    out0, out1 = load_head(OUT + b * out_batch + h * d, out_row, None, 0, n, N, d, D0, D1, EVEN_N)  # [n, d]
    delta = row_delta(g0, g1, out0, out1, D1)  # [n]
    tl.store(DELTA + n, delta, mask=n < N)
    lse = tl.load(LSE + n, mask=n < N, other=0.0) * 1.4426950408889634

    # Compute: walk over the keys
    dq0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dq1 = tl.zeros((BLOCK_N, D1 if D1 > 0 else 16), tl.float32)
    for start in range(0, M, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        k0, k1 = load_head(K, k_row, KE, ke_row, m, M, d, D0, D1, EVEN_M)  # [m, d]
        v0, v1 = load_head(V, v_row, None, 0, m, M, d, D0, D1, EVEN_M)  # [m, d]
        s = dot_heads(q0, q1, k0, k1, D1)  # [n, m]
        p = tl.exp2(s * (scale * 1.4426950408889634) - lse[:, None])
        if not EVEN_M:
            p = tl.where(m[None, :] < M, p, 0.0)
        ds = p * (dot_heads(g0, g1, v0, v1, D1) - delta[:, None])
        dq0, dq1 = add_dot(dq0, dq1, ds.to(k0.dtype), k0, k1, D1)

    # Store
    store_head(DQ + b * dq_batch + h * d, dq_row, n, N, dq0 * scale, dq1 * scale, d, D0, D1, EVEN_N)


@triton.jit
def keys_kernel(
    G,  # in: gradient of out [B, N, D], strides (g_batch, g_row, 1)
    Q,  # in: [B, N, D], strides (q_batch, q_row, 1)
    K,  # in: [B, M, D], strides (k_batch, k_row, 1)
    V,  # in: [B, M, D], strides (v_batch, v_row, 1)
    QE,  # in: q_embed [N, D], strides (qe_row, 1); or None
    KE,  # in: k_embed [M, D], strides (ke_row, 1); or None
    OUT,  # in: [B, N, D], strides (out_batch, out_row, 1)
    LSE,  # in: float32 [B, H, N], dense
    DELTA,  # rowsum(g out), float32 [B, H, N], dense; in, and where ONE out
    DQ,  # out where ONE: [B, N, D], strides (dq_batch, dq_row, 1)
    DK,  # out: [B, M, D], strides (dk_batch, dk_row, 1)
    DV,  # out: [B, M, D], strides (dk_batch, dk_row, 1)
    g_batch, g_row, out_batch, out_row, q_batch, q_row, k_batch, k_row, v_batch, v_row, dq_batch, dq_row,
    dk_batch, dk_row, qe_row, ke_row,
    N, M, H, scale,
    d: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    ONE: tl.constexpr, EVEN_N: tl.constexpr, EVEN_M: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of BLOCK_M keys of one head of one image; ONE: these are all keys, and dq is made too.

    Scores are held transposed, [m, n], so that the sums over queries stay in place.
    """
    # Which image, head and keys
    blocks = tl.cdiv(M, BLOCK_M)
    m = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(0) // blocks
    h = head % H
    b = (head // H).to(tl.int64)
    G += b * g_batch + h * d
    Q += b * q_batch + h * d
    OUT += b * out_batch + h * d
    DQ += b * dq_batch + h * d
    if QE is not None:
        QE += h * d
    if KE is not None:
        KE += h * d
    LSE += head.to(tl.int64) * N
    DELTA += head.to(tl.int64) * N

    if ONE:  # in the main loop it would take the registers that dq needs
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            g0, g1 = load_head(G, g_row, None, 0, n, N, d, D0, D1, EVEN_N)  # [n, d]
            out0, out1 = load_head(OUT, out_row, None, 0, n, N, d, D0, D1, EVEN_N)  # [n, d]
            tl.store(DELTA + n, row_delta(g0, g1, out0, out1, D1), mask=n < N)
        tl.debug_barrier()  # other threads read it

    # Load what belongs to the keys
    k0, k1 = load_head(K + b * k_batch + h * d, k_row, KE, ke_row, m, M, d, D0, D1, EVEN_M)  # [m, d]
    v0, v1 = load_head(V + b * v_batch + h * d, v_row, None, 0, m, M, d, D0, D1, EVEN_M)  # [m, d]

    # Compute: walk over the queries
    dk0 = tl.zeros((BLOCK_M, D0), tl.float32)
    dk1 = tl.zeros((BLOCK_M, D1 if D1 > 0 else 16), tl.float32)
    dv0 = tl.zeros((BLOCK_M, D0), tl.float32)
    dv1 = tl.zeros((BLOCK_M, D1 if D1 > 0 else 16), tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        q0, q1 = load_head(Q, q_row, QE, qe_row, n, N, d, D0, D1, EVEN_N)  # [n, d]
        g0, g1 = load_head(G, g_row, None, 0, n, N, d, D0, D1, EVEN_N)  # [n, d]
        lse = tl.load(LSE + n, mask=n < N, other=0.0) * 1.4426950408889634
        delta = tl.load(DELTA + n, mask=n < N, other=0.0)
        s = dot_heads(k0, k1, q0, q1, D1)  # [m, n]
        p = tl.exp2(s * (scale * 1.4426950408889634) - lse[None, :])
        if not EVEN_M:  # keys beyond M would reach dq
            p = tl.where(m[:, None] < M, p, 0.0)
        if not EVEN_N:  # queries beyond N are zero; so is what they add, but for keys that are infinite
            p = tl.where(n[None, :] < N, p, 0.0)
        ds = (p * (dot_heads(v0, v1, g0, g1, D1) - delta[None, :])).to(q0.dtype)
        dv0, dv1 = add_dot(dv0, dv1, p.to(g0.dtype), g0, g1, D1)
        dk0, dk1 = add_dot(dk0, dk1, ds, q0, q1, D1)
        if ONE:
            # Two branches, always taken: what a dot shares with another in its region makes Triton line all warps up
            # along the rows, of which dq has too few, and each would do four times its part.
            if start < N:
                dq0 = tl.dot(tl.trans(ds), k0, input_precision="ieee")  # [n, D0]
                store_tile(DQ, dq_row, n, N, dq0 * scale, 0, D0, d, EVEN_N)
            if D1 > 0:  # noqa: SIM102 - the inner one is a branch of the kernel
                if start >= 0:
                    dq1 = tl.dot(tl.trans(ds), k1, input_precision="ieee")  # [n, D1]
                    store_tile(DQ, dq_row, n, N, dq1 * scale, D0, D1, d, EVEN_N)

    # Store
    DK += b * dk_batch + h * d
    DV += b * dk_batch + h * d
    store_head(DK, dk_row, m, M, dk0 * scale, dk1 * scale, d, D0, D1, EVEN_M)
    store_head(DV, dk_row, m, M, dv0, dv1, d, D0, D1, EVEN_M)
