"""The most memory that calls hold, counted by storages; tensors on "meta" count as if they had data."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LivePeak(TorchDispatchMode):
    """The most bytes of new storages that were alive at once."""

    def __init__(self, *known):
        super().__init__()
        self.known = {StorageWeakRef(t.untyped_storage()).cdata for t in known}
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                held = StorageWeakRef(t.untyped_storage())
                if held.cdata not in self.known:
                    self.alive[held.cdata] = held, t.untyped_storage().nbytes()
        if sum(size for _, size in self.alive.values()) > self.peak:
            self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out
