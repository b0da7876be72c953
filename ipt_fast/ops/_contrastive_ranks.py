"""What every rank has, seen by every other one: gathered, or passed round a ring, a block on its way while one is used.

Bytes that a rank of ``patch_contrastive_loss`` sends a step round the ring, with R ranks of B images, N tokens, D
features of ``e`` bytes and row statistics of ``s`` bytes: the features in each pass and the statistics in the backward,
(R - 1) B N (2 D e + N s), and the features once more for each further range of positions that is done by itself. An
all-gather would send the features once, (R - 1) B N (D e + N s), but hold what R - 1 ranks sent from the forward to the
backward; a ring holds two blocks of a few images, whatever R and B. IPT in 16 bits, a photo and another rank: 0.72 MB
instead of 0.43.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def ranks_in_scope(scope: str) -> int:
    """Return the number of ranks that hold negatives; 1 for "local" and without a process group."""
    return dist.get_world_size() if scope == "global" and dist.is_available() and dist.is_initialized() else 1


def visitors(*blocks: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the blocks of each other rank, the rank before this one first. All ranks must ask, for equal shapes."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    held, spare = tuple(block.detach().contiguous() for block in blocks), None
    for step in range(ranks):
        coming = (spare or tuple(map(torch.empty_like, held))) if step < ranks - 1 else ()
        transfers = [dist.P2POp(dist.isend, b, (rank + 1) % ranks) for b in held[: len(coming)]]
        transfers += [dist.P2POp(dist.irecv, b, (rank - 1) % ranks) for b in coming]
        works = dist.batch_isend_irecv(transfers) if transfers else []
        if step:
            yield held
            spare = held  # used and, after the wait, sent on
        for work in works:
            work.wait()
        held = coming


def gather_remote(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the ranks before and behind have in place of ``x``, joined in rank order; without gradient.

    Both are views of one tensor: what was gathered is held once.
    """
    gathered = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
    # PyTorch 2.13 deprecates the second name; older ones do not have the first.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, x.detach().contiguous())
    first = dist.get_rank() * len(x)
    return gathered[:first], gathered[first + len(x) :]


class Remote(torch.autograd.Function):
    """What the other ranks have in place of ``x`` [B, ...], in rank order; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.size = len(x)
        return torch.cat(gather_remote(x))  # [(R - 1) B, ...]

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        first = dist.get_rank() * ctx.size
        own = torch.zeros_like(grad[: ctx.size])
        grads = torch.cat([grad[:first], own, grad[first:]])  # [R B, ...]
        dist.all_reduce(grads)
        return grads[first : first + ctx.size]
