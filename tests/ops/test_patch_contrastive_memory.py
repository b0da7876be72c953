"""The most memory that backend "gemm" holds beyond features and gradient, counted on tensors without data.

"meta" stands for a GPU: its sizes of blocks, and float16 products where features have 16 bits.
"""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ipt_fast.ops.patch_contrastive_loss import BACKENDS

N, D = 256, 576
LIMIT = 64e6


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


def peak(B, dtype, mode):
    """Bytes beyond features and gradient, of forward and backward together."""
    gemm, features = BACKENDS["gemm"], torch.empty(B, N, D, dtype=dtype, device="meta")
    with LivePeak(features) as forward:
        kept, values, token_sum = gemm.forward(features, mode, 0.07, "local")
    weights = torch.empty_like(values)
    with LivePeak(features, kept, values, token_sum, weights) as backward:
        gemm.backward(features, kept, token_sum, weights, mode, 0.07, "local")
    return max(forward.peak, backward.peak - features.nbytes + kept.nbytes + token_sum.nbytes)


@pytest.mark.parametrize(
    "mode, B, dtype",
    [
        ("paper", 64, torch.float16),
        ("paper", 256, torch.float16),
        ("paper", 160, torch.float32),
        ("supcon", 32, torch.float16),
        ("supcon", 32, torch.float32),
    ],
    ids=str,
)
def test_no_more_than_64_megabytes_beyond_features_and_gradient(monkeypatch, mode, B, dtype):
    monkeypatch.setattr("ipt_fast.ops._patch_contrastive_loss_gemm.product_dtype", lambda features, mode: dtype)
    assert 10e6 < peak(B, dtype, mode) <= 64e6
