"""Backend "triton" of row_contrastive_loss against float64, within the error budget of the eager reference."""

import math

import pytest
import torch

from ipt_fast.kernels import row_contrastive_loss as kernels
from ipt_fast.ops import row_contrastive_loss
from ipt_fast.ops.row_contrastive_loss import backend_status, row_contrastive_loss_reference
from tests.ops.rows import make_rows, relative, value_and_grads

GEMM = "ipt_fast.ops._row_contrastive_loss_gemm"
MODES = ("softmax", "sigmoid")
# Triton's interpreter computes bfloat16 wrongly without saying so.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles, none of which is full, of blocks that are not full either."""
    for name in ("_CPU_TILE", "_TILE"):
        monkeypatch.setattr(f"{GEMM}.{name}", (48, 150))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("B, D", [(1, 7), (32, 16), (257, 33)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_error_is_within_twice_the_eager_one(device, small_tiles, mode, B, D, dtype):
    inputs, weights = make_rows(B, D, mode, dtype, device), torch.randn(B, device=device)
    options = {"mode": mode, "reduction": "none"}
    want = value_and_grads([t.double() for t in inputs], weights, impl="eager", **options)
    budget = value_and_grads(inputs, weights, impl="eager", **options)
    if device.type == "cuda" and dtype != torch.float32:  # the gradient of the logits has 16 bits there
        budget = value_and_grads(inputs, weights, lambda *t: row_contrastive_loss_reference(*t, mode=mode))
    got = value_and_grads(inputs, weights, impl="triton", **options)
    for g, b, w in zip(got, budget, want, strict=True):
        assert relative(g, w) <= 2 * relative(b, w) + 1e-6
    again = value_and_grads(inputs, weights, impl="triton", **options)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_float16_gemms_with_float32_sums(device, small_tiles, monkeypatch, mode):
    def product(a, b, out=None):
        assert a.dtype == b.dtype == torch.float16
        exact = a.float() @ b.float()
        return exact if out is None else out.copy_(exact)

    inputs, weights = make_rows(67, 40, mode, torch.float16, device), torch.randn(67, device=device)
    options = {"mode": mode, "reduction": "none"}
    want = value_and_grads([t.double() for t in inputs], weights, impl="eager", **options)
    rough = value_and_grads(inputs, weights, lambda *t: row_contrastive_loss_reference(*t, mode=mode))
    if device.type == "cpu":
        monkeypatch.setattr(f"{GEMM}.operand_dtype", lambda x: x.dtype)
        for module in (GEMM, "ipt_fast.ops._contrastive_blocks"):
            monkeypatch.setattr(f"{module}.product", product)
    got = value_and_grads(inputs, weights, impl="triton", **options)
    for g, b, w in zip(got, rough, want, strict=True):
        assert relative(g, w) <= 2 * relative(b, w) + 1e-4


def test_what_is_left_of_the_softmax_when_every_positive_wins(device):
    for scale in (100.3, 101.9, 103.6, 104.2):
        rows = torch.eye(2), torch.tensor([[1.0, 0.93], [0.93, 1.0]])
        inputs = [t.to(device) for t in (*rows, torch.tensor(scale))]
        weights = torch.ones((), device=device)
        want = value_and_grads([t.double() for t in inputs], weights, impl="eager")
        got = value_and_grads(inputs, weights, impl="triton")
        assert relative(got[0], want[0]) < 3e-4
        assert all(relative(g, w) < 2e-3 for g, w in zip(got[1:], want[1:], strict=True))


def test_what_many_unlikely_pairs_add_to_the_sigmoid(device):
    # 63 losses of exp(-12) each: of 1 + exp(-12) float32 would hold exp(-12) to 1 % alone.
    rows = torch.eye(64, device=device)
    got = row_contrastive_loss(rows, rows, 40.0, -12.0, mode="sigmoid", reduction="none", impl="triton")
    torch.testing.assert_close(got, torch.full_like(got, 63 * math.log1p(math.exp(-12))), rtol=1e-5, atol=0)


def test_sums_of_rows_or_of_columns_alone_are_those_of_both(device):
    # As for another rank's rows: each side's statistics are of the own rows alone.
    tile, scale = torch.randn(40, 200, device=device), torch.tensor(3.0, device=device)
    both, alone = ([torch.zeros(2, n, device=device) for n in tile.shape] for _ in range(2))
    kernels.add_sums(tile, scale, *both, torch.empty_like(tile))
    kernels.add_sums(tile, scale, alone[0], None, torch.empty_like(tile))
    kernels.add_sums(tile, scale, None, alone[1], torch.empty_like(tile))
    for axis, found, again in zip((1, 0), both, alone, strict=True):
        assert torch.equal(found, again)
        most = (3.0 * tile).amax(axis).clamp(min=0)  # what was there: maximum 0, of nothing
        torch.testing.assert_close(found[0], most)
        torch.testing.assert_close(found[1], (3.0 * tile - most.unsqueeze(axis)).exp().sum(axis))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_single_nan_inf_or_overflow_shows_in_the_loss(device, mode, value):
    inputs = make_rows(40, 4, mode, torch.float32, device)
    inputs[0][-1, -1] = value
    loss, *grads = value_and_grads(inputs, torch.ones((), device=device), mode=mode, impl="triton")
    assert not loss.isfinite()
    assert not all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("mode", MODES)
def test_logits_far_beyond_the_range_of_exp(device, mode):
    inputs, weights = make_rows(40, 6, mode, torch.float32, device, scale=1e4), torch.randn(40, device=device)
    options = {"mode": mode, "reduction": "none"}
    want = value_and_grads([t.double() for t in inputs], weights, impl="eager", **options)
    for g, w in zip(value_and_grads(inputs, weights, impl="triton", **options), want, strict=True):
        assert g.isfinite().all() and relative(g, w) < 1e-3


def test_what_it_cannot_do_is_said(device):
    assert backend_status(device)["triton"] is None
    x = torch.ones(4, 3, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match='impl="triton" has no float64 kernel; use impl="gemm"'):
        row_contrastive_loss(x, x, 1.0, impl="triton")
