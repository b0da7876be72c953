"""Rows of windows through a network in batches, whatever image they come from."""

import gc
import itertools
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def in_batches(
    network: Network, rows: Iterable[Tensor], limit: int, progress: Callable[[int], None] | None = None
) -> Iterator[Tensor]:
    """Yield the outputs of each row of windows [any, C, s, s], computed at most ``limit`` windows at once.

    A batch is as many whole rows as fit, or an equal part of a row that is longer. Where memory runs out ``limit`` is
    halved, with a ResourceWarning. ``progress`` is called with the number of windows of each batch.
    """
    for group in _groups(rows, limit):
        lengths = [len(row) for row in group]
        windows, outputs, start = torch.cat(group) if len(group) > 1 else group[0], [], 0
        group.clear()  # what is not needed any more is not held
        while start < len(windows):
            left = len(windows) - start
            part = windows[start : start + math.ceil(left / math.ceil(left / limit))]
            result = _run(network, part)
            if result is None:
                limit = len(part) // 2
                said = f"out of memory with {len(part)} windows at once, going on with {limit}"
                warnings.warn(said, ResourceWarning, stacklevel=2)
                continue
            outputs.append(result)
            start += len(part)
            if progress is not None:
                progress(len(part))
        del windows, part, result
        yield from (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).split(lengths)


def in_full_batches(
    network: Network, rows: Iterable[Tensor], limit: int, progress: Callable[[int], None] | None = None
) -> Iterator[Tensor]:
    """Yield what ``in_batches`` does, but fill every batch but the last: a row may begin in one and end in another."""
    lengths: deque[int] = deque()

    def windows() -> Iterator[Tensor]:
        for row in rows:
            lengths.append(len(row))
            yield from row.split(1)

    outputs = in_batches(network, windows(), limit, progress)
    for first in outputs:
        yield torch.cat([first, *itertools.islice(outputs, lengths.popleft() - 1)])


def _groups(rows: Iterable[Tensor], limit: int) -> Iterator[list[Tensor]]:
    group: list[Tensor] = []
    for row in rows:
        if group and sum(map(len, group)) + len(row) > limit:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _run(network: Network, windows: Tensor) -> Tensor | None:
    """Return the outputs; None where memory ran out, once the error no longer holds activations."""
    try:
        return network(windows)
    except RuntimeError as error:
        text = str(error).lower()
        no_memory = isinstance(error, torch.OutOfMemoryError) or ("alloc" in text and "memory" in text)
        if not no_memory or len(windows) == 1:
            raise
    gc.collect()
    if windows.is_cuda:
        torch.cuda.empty_cache()
    return None
