"""What every rank has, seen by every other one: blocks go round a ring, the next one on its way while one is used.

Bytes that a rank sends a step, with R ranks of B images, N tokens, D features of ``e`` bytes and row statistics of
``s`` bytes: the features in each pass and the statistics in the backward, (R - 1) B N (2 D e + N s), and the features
once more for each further range of positions that is done by itself. An all-gather would send the features once,
(R - 1) B N (D e + N s), but hold what R - 1 ranks sent from the forward to the backward; a ring holds two blocks of a
few images, whatever R and B. IPT in 16 bits, a photo and another rank: 0.72 MB instead of 0.43.
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
