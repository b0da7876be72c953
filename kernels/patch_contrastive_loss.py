"""Contrastive loss between the patches of a batch: launchers of the kernels, and how tokens are laid out.

B images with N tokens of D features are the anchors; the images of other ranks are negatives, too. u are unit tokens.
S[i1, i2, j] = sum over images k != j of exp(u[j, i1] . u[k, i2]), float32 [N, N, B].

Layout: a tile holds a few positions of up to ``Plan.images`` images, position by position, and the tiles follow each
other position by position, so that all images at a position lie together. Images and positions are padded to whole
tiles with zero tokens.

Forward: a tile of exp(cosine) holds, for each of its rows, the images k at a few positions, and for each of its columns
the images j. So the sums of its rows and of its columns are parts of S[i1, i2] and S[i2, i1], which no other pair of
positions enters: half of the cosines are computed, each is used twice on the chip and none leaves it, and nothing is
added atomically.

Backward: with P = exp(cosine), recomputed, and c = (gradient of log S) / S, token (j, i1) gets
sum over k != j and i2 of W u[k, i2], W = P (c[i1, i2, j] + c[i2, i1, k]), a symmetric matrix. Blocks of W that about
stay in the L2 cache go to memory, and the vendor library multiplies them with u, and transposed with the other u.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ipt_fast.kernels._patch_contrastive_tiles import (
    GROUP,
    logs_kernel,
    sums_kernel,
    unit_backward_kernel,
    unit_kernel,
    weights_kernel,
)

_BLOCK_BYTES = 24 << 20  # weights in memory at a time: about half of the L2 cache of the GPUs this is for
_LEAST = 1e-30  # a gradient below has a smaller part in 16-bit weights
_PAIRS = 64  # pairs of positions whose logarithms a program sums


@dataclass(frozen=True)
class Plan:
    """Tile sizes of one call. Features are padded to a multiple of ``block_d``."""

    block: int  # tokens in a tile
    images: int  # in a tile, a power of two
    block_d: int
    num_warps: int
    num_stages: int
    DP: int
    rows: int  # of the kernels that go token by token

    @property
    def block_of_features(self) -> int:
        """Return the features of a token, padded to a power of two."""
        return triton.next_power_of_2(self.DP)

    def chunks(self, images: int) -> int:
        """Return the tiles that ``images`` images have at a position."""
        return triton.cdiv(images, self.images)

    def tiles(self, images: int, N: int) -> int:
        """Return the tiles of ``images`` images with N tokens."""
        return triton.cdiv(N, self.block // self.images) * self.chunks(images)


def plan(B: int, N: int, D: int, dtype: torch.dtype, processors: int) -> Plan:
    """Choose tiles so that the compiled kernels spill nothing (``python -m bench.offline``) and the forward takes the
    least rounds: its programs are pairs of positions, two of them run on a multiprocessor at a time.
    """
    if dtype == torch.float32:  # no tensor cores, or tf32: twice the bytes
        blocks, block_d, stages, warps = (64,), min(16, _power(D)), 3, 4
    else:
        blocks, block_d, stages, warps = (64, 128), min(64, _power(D)), 3, 8

    def rounds(size: tuple[int, int]) -> float:
        block, images = size
        count = triton.cdiv(N, block // images)
        programs = triton.cdiv(count * (count + 1) // 2, 2 * processors)
        # A small tile takes the L2 cache twice as long for its FLOPs.
        return programs * triton.cdiv(B, images) ** 2 * block**2 * (1.5 if block == 64 else 1.0)

    # 128 images in a tile spill, several tiles a position, on sm_80.
    sizes = [(block, 1 << power) for block in blocks for power in range(7)]
    # Of equals those that pad least, then those with the fewest sums of columns in memory
    padded = {(block, images): triton.cdiv(B, images) * images for block, images in sizes}
    block, images = min(sizes, key=lambda size: (rounds(size), padded[size], -size[1]))
    if block == 128:  # with 64 features at a time Triton 3.6 spills on sm_80
        block_d, stages = min(32, block_d), 4
    DP = triton.cdiv(D, block_d) * block_d
    return Plan(block, images, block_d, warps, stages, DP, max(1, min(16, 8192 // triton.next_power_of_2(DP))))


def _power(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _plan(features: Tensor, dtype: torch.dtype) -> Plan:
    device = features.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return plan(*features.shape, dtype, processors)


def _unit_tokens(features: Tensor, p: Plan, dtype: torch.dtype, sums: bool = False) -> tuple[Tensor, Tensor | None]:
    """Make unit tokens [tiles * block, DP] in ``dtype`` and, if asked for, each image's sum of them [B, D] float32."""
    images, N, D = features.shape
    padded = images % p.images or N % (p.block // p.images)
    new = features.new_zeros if padded else features.new_empty
    u = new(p.tiles(images, N) * p.block, p.DP, dtype=dtype)
    parts = triton.cdiv(N, p.rows)
    token_sums = features.new_empty(images, parts, D, dtype=torch.float32) if sums else None
    unit_kernel[(images * parts,)](features.contiguous(), u, token_sums, N, p.chunks(images), **_token_options(p, D))
    return u, None if token_sums is None else token_sums.sum(1)


def _token_options(p: Plan, D: int) -> dict[str, Any]:
    sizes = {"D": D, "DP": p.DP, "BLOCK_D": p.block_of_features, "ROWS": p.rows}
    return {**sizes, "IMAGES": p.images, "BLOCK": p.block}


def _options(p: Plan, precision: str) -> dict[str, Any]:
    return {
        **{"DP": p.DP, "IMAGES": p.images, "BLOCK": p.block, "BLOCK_D": p.block_d, "PRECISION": precision},
        **{"num_warps": p.num_warps, "num_stages": p.num_stages},
    }


def pairs(count: int) -> int:
    """Return the programs that have all pairs first <= second < ``count``."""
    groups = triton.cdiv(count, GROUP.value)
    return groups * (groups + 1) // 2 * GROUP.value**2


def patch_contrastive_forward(
    features: Tensor, others: Sequence[Tensor], dtype: torch.dtype, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums over the negatives, the sums of their logarithms, and the tokens' sums.

    Args:
        features: [B, N, D] float16, bfloat16 or float32.
        others: [images, N, D] each, images that are negatives only.
        dtype: of the unit tokens in the GEMMs.
        precision: of float32 GEMMs, "ieee" or "tf32".

    Returns:
        S [N, N, B], the sum of log S [B] and the sum of unit tokens [B, D], float32.
    """
    B, N, _ = features.shape
    p = _plan(features, dtype)
    how = _options(p, precision)
    with torch.cuda.device_of(features):
        u, token_sum = _unit_tokens(features, p, dtype, sums=True)
        sums = features.new_empty(N, N, B, dtype=torch.float32)
        own, count = (B, p.chunks(B)), triton.cdiv(N, p.block // p.images)
        sums_kernel[(pairs(count),)](u, u, sums, *own, *own, N, OWN=True, **how)
        for bank in others:
            negatives, _ = _unit_tokens(bank, p, dtype)
            sums_kernel[(count**2,)](u, negatives, sums, *own, len(bank), p.chunks(len(bank)), N, OWN=False, **how)
        images, parts = min(64, triton.next_power_of_2(B)), triton.cdiv(N * N, _PAIRS)
        logs = features.new_empty(parts, B, dtype=torch.float32)
        logs_kernel[(parts, triton.cdiv(B, images))](sums, logs, N * N, B, PAIRS=_PAIRS, IMAGES=images)
    return sums, logs.sum(0), token_sum


class Negatives(NamedTuple):
    """Images that are negatives, B a rank, in rank order: features [images, N, D], sums S [images / B, N, N, B] and
    gradients of log S [images] of what they are as anchors.
    """

    features: Tensor
    sums: Tensor
    log_grad: Tensor


def patch_contrastive_backward(
    features: Tensor,
    sums: Tensor,
    token_sum: Tensor,
    log_grad: Tensor,
    others: Sequence[Negatives],
    dtype: torch.dtype,
    precision: str,
) -> Tensor:
    """Return the gradient of the features, [B, N, D] in their dtype.

    Args:
        features, dtype, precision: as in the forward.
        sums, token_sum: [N, N, B] and [B, D] of the forward.
        log_grad: [B] float32, the gradient of each log S of an image.
        others: images that are negatives only, with what they have as anchors.
    """
    B, N, D = features.shape
    features, p = features.contiguous(), _plan(features, dtype)
    # Weights are at most 2 e^2 in units of largest / negatives: float16 holds them whatever the loss is scaled by.
    every = torch.cat([log_grad, *(bank.log_grad for bank in others)]) if others else log_grad
    largest = torch.linalg.vector_norm(every, torch.inf).clamp(min=_LEAST).reshape(1)
    work = _Work(N, B - 1 + sum(len(bank.features) for bank in others), p, precision)
    with torch.cuda.device_of(features):
        own = _bank(Negatives(features, sums, log_grad), largest, p, dtype)
        g = torch.empty(own.u.shape, dtype=torch.float32, device=features.device)
        _write_own(g, own, work)
        for bank in others:
            _add_other(g, own, _bank(bank, largest, p, dtype), work)
        grad = torch.empty_like(features)
        unit_backward_kernel[(B * triton.cdiv(N, p.rows),)](
            g, features, token_sum.contiguous(), log_grad, largest, grad, N, own.chunks, work.negatives,
            **_token_options(p, D),
        )  # fmt: skip
    return grad


class _Work(NamedTuple):
    """What is the same for all blocks of weights."""

    N: int
    negatives: int
    plan: Plan
    precision: str

    def tokens(self, x: Tensor, tiles: range) -> Tensor:
        """Return the rows of ``x`` that lie in ``tiles``."""
        return x[tiles.start * self.plan.block : tiles.stop * self.plan.block]

    def tiles(self, x: Tensor) -> int:
        """Return the number of tiles of ``x``."""
        return len(x) // self.plan.block

    def most(self, x: Tensor) -> int:
        """Return how many tiles a block of weights has at most, in the dtype of ``x``."""
        return max(1, _BLOCK_BYTES // (self.plan.block**2 * x.element_size()))


class _Bank(NamedTuple):
    """Unit tokens in their layout, and what their images have as anchors."""

    u: Tensor
    sums: Tensor
    relative: Tensor  # gradients of log S, relative to the largest
    images: int
    chunks: int


def _bank(images: Negatives, largest: Tensor, p: Plan, dtype: torch.dtype) -> _Bank:
    u, _ = _unit_tokens(images.features, p, dtype)
    count = len(images.features)
    return _Bank(u, images.sums, images.log_grad / largest, count, p.chunks(count))


def _write_own(g: Tensor, own: _Bank, work: _Work) -> None:
    """Write to g [tiles * block, DP] what the anchors are to each other; a block of weights serves rows and columns."""
    parts = _ranges(work.tiles(own.u), math.isqrt(work.most(own.u)))
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            w = _weights(own, own, rows, columns, work)
            _product(work.tokens(g, rows), w, work.tokens(own.u, columns), add=i > 0 or columns is not rows)
            if columns is not rows:
                _product(work.tokens(g, columns), w.t(), work.tokens(own.u, rows), add=i > 0)


def _add_other(g: Tensor, own: _Bank, other: _Bank, work: _Work) -> None:
    """Add to g [tiles * block, DP] what the anchors get from other images."""
    most = work.most(own.u)
    for rows in _ranges(work.tiles(own.u), max(math.isqrt(most), most // work.tiles(other.u))):
        for columns in _ranges(work.tiles(other.u), most // len(rows)):
            w = _weights(own, other, rows, columns, work)
            _product(work.tokens(g, rows), w, work.tokens(other.u, columns), add=True)


def _ranges(tiles: int, most: int) -> list[range]:
    """Divide ``tiles`` into the fewest parts of ``most`` at most, about equal."""
    size = triton.cdiv(tiles, triton.cdiv(tiles, max(1, most)))
    return [range(first, min(first + size, tiles)) for first in range(0, tiles, size)]


def _weights(own: _Bank, other: _Bank, rows: range, columns: range, work: _Work) -> Tensor:
    """Return weights [rows * block, columns * block] in the dtype of the unit tokens."""
    block = work.plan.block
    w = own.u.new_empty(len(rows) * block, len(columns) * block)
    symmetric = own is other and rows is columns
    weights_kernel[(pairs(len(rows)) if symmetric else len(rows) * len(columns),)](
        own.u, other.u, own.sums, other.sums, own.relative, other.relative, w,
        rows.start, columns.start, len(rows), len(columns), own.images, own.chunks, other.images, other.chunks,
        work.N, work.negatives, OWN=own is other, SYMMETRIC=symmetric, **_options(work.plan, work.precision),
    )  # fmt: skip
    return w


def _product(target: Tensor, a: Tensor, b: Tensor, add: bool) -> None:
    """Write or add a b to ``target``, in float32 whatever the factors."""
    if a.dtype != torch.float32 and not a.is_cuda:
        a, b = a.float(), b.float()
    if a.dtype == torch.float32:
        target.addmm_(a, b, beta=float(add))
    elif add:
        target += torch.mm(a, b, out_dtype=torch.float32)
    else:
        torch.mm(a, b, out_dtype=torch.float32, out=target)
