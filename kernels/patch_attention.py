"""Attention with additive query and key embeddings: the forward kernel, and the launchers of forward and backward.

B images, H heads of d, N queries, M keys, D = H d. Per head: out = softmax((q + q_embed)(k + k_embed)^T scale) v.
The embeddings are added as q and k are loaded; scores and probabilities never leave the chip.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ipt_fast.kernels._patch_attention_backward import keys_kernel, queries_kernel
from ipt_fast.kernels._patch_attention_tiles import (
    LOG2E,
    add_dot,
    capability_of,
    dot_heads,
    load_head,
    multiprocessors,
    rows_dense,
    split_head,
    store_head,
)

ONE_PASS = 256  # keys that a program can keep on chip


@triton.jit
def attend(top, total, out0, out1, q0, q1, k, v, m, M, unit, D1: tl.constexpr, POSITIVE: tl.constexpr,
           EVEN_M: tl.constexpr):  # fmt: skip
    """Let queries [n, d] take in a tile of keys and values [m, d]: highest exponent, sum and output -> with it."""
    s = dot_heads(q0, q1, k[0], k[1], D1)  # [n, m]
    if not POSITIVE:  # the highest score is not the highest exponent
        s *= unit
        unit = 1.0
    if not EVEN_M:
        s = tl.where(m[None, :] < M, s, -float("inf"))
    higher = tl.maximum(top, tl.max(s, 1) * unit)
    p = tl.exp2(s * unit - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    out0, out1 = add_dot(out0 * shrink[:, None], out1 * shrink[:, None], p.to(v[0].dtype), v[0], v[1], D1)
    return higher, total, out0, out1


@triton.jit
def forward_kernel(
    Q,  # in: [B, N, D], strides (q_batch, q_row, 1)
    K,  # in: [B, M, D], strides (k_batch, k_row, 1)
    V,  # in: [B, M, D], strides (v_batch, v_row, 1)
    QE,  # in: q_embed [N, D], strides (qe_row, 1); or None
    KE,  # in: k_embed [M, D], strides (ke_row, 1); or None
    OUT,  # out: [B, N, D], dense
    LSE,  # out: logarithm of the softmax's denominators, float32 [B, H, N], dense
    q_batch, q_row, k_batch, k_row, v_batch, v_row, qe_row, ke_row,
    N, M, H,
    rows,  # queries a program
    unit,  # scale log2(e)
    d: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,  # head size, and the tiles it is cut into
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    HELD: tl.constexpr,  # tiles of keys that cover M and stay on chip; 0: keys are read again for each BLOCK_N queries
    POSITIVE: tl.constexpr,  # unit > 0
    EVEN_N: tl.constexpr, EVEN_M: tl.constexpr,  # no masks along N, M
):  # fmt: skip
    """Attend: one program makes ``rows`` queries of one head of one image."""
    # Which image, head and queries
    parts = tl.cdiv(N, rows)
    first = (tl.program_id(0) % parts) * rows
    head = tl.program_id(0) // parts
    h = head % H
    b = (head // H).to(tl.int64)
    Q += b * q_batch + h * d
    K += b * k_batch + h * d
    V += b * v_batch + h * d
    OUT += (b * N * H + h) * d
    LSE += head.to(tl.int64) * N
    if QE is not None:
        QE += h * d
    if KE is not None:
        KE += h * d

    # Load the keys that stay on chip
    if HELD > 0:
        keys, values = (), ()
        for part in tl.static_range(HELD):
            m = part * BLOCK_M + tl.arange(0, BLOCK_M)
            keys += (load_head(K, k_row, KE, ke_row, m, M, d, D0, D1, EVEN_M),)  # [m, d]
            values += (load_head(V, v_row, None, 0, m, M, d, D0, D1, EVEN_M),)  # [m, d]

    for start in range(first, tl.minimum(first + rows, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        # Load queries
        q0, q1 = load_head(Q, q_row, QE, qe_row, n, N, d, D0, D1, EVEN_N)  # [n, d]
        top = tl.full((BLOCK_N,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        out0 = tl.zeros((BLOCK_N, D0), tl.float32)
        out1 = tl.zeros((BLOCK_N, D1 if D1 > 0 else 16), tl.float32)
        # Compute: walk over the keys
        if HELD > 0:
            for part in tl.static_range(HELD):
                m = part * BLOCK_M + tl.arange(0, BLOCK_M)
                top, total, out0, out1 = attend(
                    top, total, out0, out1, q0, q1, keys[part], values[part], m, M, unit, D1, POSITIVE, EVEN_M
                )
        else:
            for key in range(0, M, BLOCK_M):
                m = key + tl.arange(0, BLOCK_M)
                k = load_head(K, k_row, KE, ke_row, m, M, d, D0, D1, EVEN_M)  # [m, d]
                v = load_head(V, v_row, None, 0, m, M, d, D0, D1, EVEN_M)  # [m, d]
                top, total, out0, out1 = attend(top, total, out0, out1, q0, q1, k, v, m, M, unit, D1, POSITIVE, EVEN_M)
        # Store
        store_head(OUT, H * d, n, N, out0 / total[:, None], out1 / total[:, None], d, D0, D1, EVEN_N)
        lse = (top + tl.log2(total)) * 0.6931471805599453
        tl.store(LSE + n, lse, mask=n < N)


@dataclass(frozen=True)
class Plan:
    """Tile sizes of one launch. ``one``: a program keeps all keys of its head on chip."""

    block_n: int
    block_m: int
    one: bool
    num_warps: int
    num_stages: int


def plan_forward(N: int, M: int, d: int, dtype: torch.dtype) -> Plan:
    """Choose tiles so that the compiled kernels spill nothing and several programs share a multiprocessor
    (``python -m bench.offline``).
    """
    width = sum(split_head(d))
    if dtype == torch.float32:  # no tensor cores: matmuls of small tiles in registers
        return Plan(16, _block(M, 32 if width <= 64 else 16), False, 4, 2)
    if d % 16:  # masks of columns take registers too
        return Plan(_block(N, 64), _block(M, 32), False, 4 if width <= 64 else 8, 2)
    if width > 64:
        return Plan(_block(N, 64), _block(M, 32), False, 4, 2)
    if M <= ONE_PASS and M % _block(M, 64) == 0:  # masked, it would spill
        return Plan(_block(N, 64), _block(M, 64), True, 4, 1)
    if N >= 1024 and width > 32:  # the L2 cache would limit: each block of queries reads all keys (bench.bounds)
        return Plan(128, _block(M, 64), False, 8, 3)
    return Plan(_block(N, 64), _block(M, 64), False, 4, 3)


def plan_backward(N: int, M: int, d: int, dtype: torch.dtype, capability: tuple[int, int]) -> Plan:
    """Choose as ``plan_forward``, for both backward kernels; ``one``: one program makes all gradients of a head."""
    width = sum(split_head(d))
    if dtype == torch.float32:
        return Plan(16, _block(M, 32 if width <= 64 else 16), False, 4, 2)
    if d % 16:
        return Plan(_block(N, 32), _block(M, 32), False, 4 if width <= 64 else 8, 2)
    if width > 64:
        return Plan(_block(N, 32), _block(M, 64), False, 8, 1)
    if width <= 48 and max(N, M) <= ONE_PASS and N % 32 == M % _block(M, ONE_PASS) == 0:
        if capability >= (10, 0):  # 32 queries at a time, or loads ahead, would spill
            return Plan(16, _block(M, ONE_PASS), True, 8, 1)
        return Plan(32, _block(M, ONE_PASS), True, 8, 2)
    return Plan(_block(N, 64 if width <= 48 else 32), _block(M, 64), False, 4, 2)


def _block(length: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(length)))


def _options(plan: Plan, N: int, M: int, d: int) -> dict[str, int]:
    D0, D1 = split_head(d)
    return {
        **{"d": d, "D0": D0, "D1": D1, "BLOCK_N": plan.block_n, "BLOCK_M": plan.block_m},
        **{"EVEN_N": N % plan.block_n == 0, "EVEN_M": M % plan.block_m == 0},
        **{"num_warps": plan.num_warps, "num_stages": plan.num_stages},
    }


def patch_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, q_embed: Tensor | None, k_embed: Tensor | None, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Map q [B, N, D], k and v [B, M, D], halves or float32, d <= 128, to out [B, N, D] and lse [B, H, N] float32.

    lse is the logarithm of every softmax's denominator, natural, for the backward.
    """
    q, k, v, q_embed, k_embed = (rows_dense(x) for x in (q, k, v, q_embed, k_embed))
    B, N, D = q.shape
    M, d = k.shape[1], D // num_heads
    out = torch.empty(B, N, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, num_heads, N, dtype=torch.float32, device=q.device)
    plan = plan_forward(N, M, d, q.dtype)
    # A program that holds the keys serves as many queries of its head as it can without multiprocessors being idle.
    rows = plan.block_n
    if plan.one:
        parts = triton.cdiv(2 * multiprocessors(q.device), B * num_heads)
        rows *= triton.cdiv(triton.cdiv(N, plan.block_n), parts)
    held = triton.cdiv(M, plan.block_m) if plan.one else 0
    with torch.cuda.device_of(q):
        forward_kernel[(triton.cdiv(N, rows) * B * num_heads,)](
            q, k, v, q_embed, k_embed, out, lse,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], _row(q_embed), _row(k_embed),
            N, M, num_heads, rows, scale * LOG2E, HELD=held, POSITIVE=scale > 0, **_options(plan, N, M, d),
        )  # fmt: skip
    return out, lse


def patch_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_embed: Tensor | None,
    k_embed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of q, k and v, given the gradient of ``out`` and what the forward returned.

    Returns:
        N == M: [B, N, 3D] and an empty tensor; otherwise dq [B, N, D] and dk, dv side by side [B, M, 2D].
    """
    grad, q, k, v, q_embed, k_embed, out = (rows_dense(x) for x in (grad, q, k, v, q_embed, k_embed, out))
    lse = lse.contiguous()
    B, N, D = q.shape
    M, d = k.shape[1], D // num_heads
    if N == M:
        first, second = torch.empty(B, N, 3 * D, dtype=q.dtype, device=q.device), q.new_empty(0)
        dq, dk, dv = first.split(D, dim=-1)
    else:
        first = dq = torch.empty(B, N, D, dtype=q.dtype, device=q.device)
        second = torch.empty(B, M, 2 * D, dtype=q.dtype, device=q.device)
        dk, dv = second.split(D, dim=-1)
    plan = plan_backward(N, M, d, q.dtype, capability_of(q.device))
    delta = torch.empty(B, num_heads, N, dtype=torch.float32, device=q.device)
    common = _options(plan, N, M, d)
    strides = [s for x in (grad, out, q, k, v, dq, dk) for s in x.stride()[:2]] + [_row(q_embed), _row(k_embed)]
    sizes = (N, M, num_heads, scale)
    with torch.cuda.device_of(q):
        if not plan.one:
            queries_kernel[(triton.cdiv(N, plan.block_n) * B * num_heads,)](
                grad, q, k, v, q_embed, k_embed, out, lse, delta, dq, *strides, *sizes, **common
            )
        keys_kernel[(triton.cdiv(M, plan.block_m) * B * num_heads,)](
            grad, q, k, v, q_embed, k_embed, out, lse, delta, dq, dk, dv, *strides, *sizes, ONE=plan.one, **common
        )
    return first, second


def _row(embed: Tensor | None) -> int:
    return 0 if embed is None else embed.stride(0)
