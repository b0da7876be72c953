"""Kernels for test_offline.py: good ones and ones that the gate must refuse."""

import triton
import triton.language as tl

from bench.offline_cases import OfflineCase


@triton.jit
def product(A, B, C, BLOCK: tl.constexpr, K: tl.constexpr):
    i, k = tl.arange(0, BLOCK), tl.arange(0, K)
    a = tl.load(A + i[:, None] * K + k[None, :])
    b = tl.load(B + i[:, None] * K + k[None, :])
    tl.store(C + i[:, None] * BLOCK + i[None, :], tl.dot(a, tl.trans(b)))


@triton.jit
def pipelined(A, B, C, n, BLOCK: tl.constexpr, K: tl.constexpr):
    # Every stage of the pipeline holds its own two tiles in shared memory.
    i, k = tl.arange(0, BLOCK), tl.arange(0, K)
    c = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, n, K):
        a = tl.load(A + i[:, None] * n + start + k[None, :])
        b = tl.load(B + i[:, None] * n + start + k[None, :])
        c = tl.dot(a, tl.trans(b), c)
    tl.store(C + i[:, None] * BLOCK + i[None, :], c)


@triton.jit
def normalise(X, Y, N: tl.constexpr):
    # The whole row stays in registers between the sum and the division.
    x = tl.exp(tl.load(X + tl.arange(0, N)))
    tl.store(Y + tl.arange(0, N), x / tl.sum(x, 0))


@triton.jit
def copy(X, Y, n, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    # A program's rows begin where 32 bits may not reach; Y's by the loop that carries its pointer.
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    X += first * n
    Y += first * n
    for _ in range(0, n, BLOCK):
        tl.store(Y + tl.arange(0, BLOCK), tl.load(X + tl.arange(0, BLOCK)))
        X += BLOCK
        Y += BLOCK


PRODUCT = {"types": {"A": "*fp16", "B": "*fp16", "C": "*fp32"}, "small": ("A", "B", "C")}
ROW = {"types": {"X": "*fp32", "Y": "*fp32"}, "small": ("X", "Y")}
COPY = {"types": {"X": "*fp32", "Y": "*fp32", "n": "i32"}, "needs_tensor_cores": False, "targets": (80,)}
SPILLING = {"consts": {"N": 8192}, "num_warps": 1, "targets": (80,), "needs_tensor_cores": False, **ROW}
SHARED = {
    "types": {**PRODUCT["types"], "n": "i32"},
    "small": PRODUCT["small"],
    "consts": {"BLOCK": 128, "K": 64},
    "align16": ("n",),
}
DEEP = {"num_warps": 8, "num_stages": 8, "targets": (80,)}


def offline_cases() -> list[OfflineCase]:
    copies = [
        OfflineCase("fixture", name, copy, consts={"WIDE": wide, "BLOCK": 128}, **COPY, small=small)
        for name, wide, small in (("wide", True, ()), ("narrow", False, ("X",)))
    ]
    return [
        *copies,
        OfflineCase("fixture", "good", product, consts={"BLOCK": 64, "K": 32}, **PRODUCT),
        OfflineCase("fixture", "memory", normalise, consts={"N": 1024}, needs_tensor_cores=False, **ROW),
        OfflineCase("fixture", "no tensor cores", normalise, consts={"N": 1024}, targets=(80,), **ROW),
        OfflineCase("fixture", "spilling", normalise, **SPILLING),
        OfflineCase("fixture", "too much shared", pipelined, **SHARED, **DEEP),
        OfflineCase("fixture", "misnamed", product, consts={"BLOCK": 64, "DEPTH": 32}, targets=(80,), **PRODUCT),
    ]
