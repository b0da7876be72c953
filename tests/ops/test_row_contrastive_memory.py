"""The most memory that backend "gemm" holds beyond rows and gradients, counted on tensors without data.

"meta" stands for a GPU: its tiles, and 16-bit GEMMs with sums in float32.
"""

import pytest
import torch

from ipt_fast.ops.row_contrastive_loss import BACKENDS
from tests.live_peak import LivePeak

D = 512


def peak(B, dtype, mode, scope="local"):
    """Bytes beyond rows and gradients, of forward and backward together."""
    gemm = BACKENDS["gemm"]
    x, y = (torch.empty(B, D, dtype=dtype, device="meta") for _ in "xy")
    numbers = [torch.empty((), device="meta") for _ in range(2)]
    with LivePeak(x, y, *numbers) as forward:
        kept, values = gemm.forward(x, y, *numbers, mode, scope)
    weights = torch.empty_like(values)
    with LivePeak(x, y, *numbers, kept, weights) as backward:
        gemm.backward(x, y, *numbers, kept, weights, mode, scope)
    return max(forward.peak, backward.peak + kept.nbytes - 2 * x.nbytes)


@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("B", [4096, 16384, 32768])
def test_two_tiles_and_what_grows_with_the_rows(B, dtype, mode):
    tile = 4 * 2048**2
    accumulators = 8 * B * D if dtype == torch.bfloat16 else 0
    most = peak(B, dtype, mode)
    assert 2 * tile < most <= 2.5 * tile + 10e6 + accumulators + 100 * B
    assert most < 4 * B * B or B == 4096  # a matrix of logits alone
