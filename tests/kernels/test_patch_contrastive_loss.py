"""The Triton kernels of patch_contrastive_loss against float64, within the error budget of the eager reference."""

import pytest
import torch

from ipt_fast.kernels import patch_contrastive_loss as kernels
from ipt_fast.ops import patch_contrastive_loss
from ipt_fast.ops.patch_contrastive_loss import backend_status, patch_contrastive_loss_reference

# Triton's interpreter computes bfloat16 wrongly without saying so.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def value_and_grad(function, features, weights):
    features = features.detach().requires_grad_()
    values = function(features)
    (values * weights.to(values.dtype)).sum().backward()
    return values.detach(), features.grad


def triton(features):
    return patch_contrastive_loss(features, reduction="none", impl="triton")


def compare(features, weights):
    """Triton's error is at most twice that of the reference with every operation in the same dtype.

    Eps counts relative to 1 where the loss is smaller than that: it is the difference of a logarithm of float32 sums,
    known to eps at best, and of the positives, and vanishes for two images of random tokens.
    """
    want = value_and_grad(patch_contrastive_loss_reference, features.double(), weights)
    budget = value_and_grad(patch_contrastive_loss_reference, features, weights)
    got = value_and_grad(triton, features, weights)
    assert got[0].dtype == torch.float32 and got[1].dtype == features.dtype
    eps = torch.finfo(features.dtype).eps
    floors = (len(features) ** 0.5 * eps, eps * want[1].norm().item())
    for name, g, b, w, floor in zip(("values", "gradient"), got, budget, want, floors, strict=True):
        assert g.isfinite().all(), name
        error, allowed = ((x.double() - w).norm().item() for x in (g, b))
        assert error <= 2 * allowed + max(floor, eps * w.norm().item()), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 256, 64), (3, 59, 7), (2, 255, 48), (2, 130, 100), (3, 70, 576), (4, 16, 1024), (2, 33, 1000), (17, 1, 5)],
    ids=str,
)
def test_error_is_within_twice_the_eager_one(device, shape, dtype):
    compare(torch.randn(shape).to(device, dtype), torch.randn(shape[0]).to(device))


@pytest.mark.parametrize("images", [1, 4])
def test_any_tile_and_any_number_of_blocks_gives_the_same(device, monkeypatch, images):
    features, weights = torch.randn(5, 10, 24, device=device), torch.randn(5, device=device)
    want = value_and_grad(patch_contrastive_loss_reference, features.double(), weights)
    monkeypatch.setattr(kernels, "_BLOCK_BYTES", 4 * 16**2 * 4)  # 2 tiles against 2
    monkeypatch.setattr(kernels, "plan", lambda *_: kernels.Plan(16, images, 16, 4, 2, 32, 4))
    for part, wanted in zip(value_and_grad(triton, features, weights), want, strict=True):
        torch.testing.assert_close(part.double(), wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item())


def test_two_runs_give_the_same_bits(device):
    features, weights = torch.randn(6, 20, 12, device=device), torch.randn(6, device=device)
    first, second = value_and_grad(triton, features, weights), value_and_grad(triton, features, weights)
    assert all(map(torch.equal, first, second))


def test_plans_fill_the_gpu_and_pad_little():
    half = torch.bfloat16
    sizes = [(B, N, half) for B in (2, 8, 32, 50, 64, 65, 96, 256) for N in (49, 256, 257)] + [(64, 256, torch.float32)]
    plans = {(B, N, dtype): kernels.plan(B, N, 576, dtype, 132) for B, N, dtype in sizes}
    assert plans[64, 256, half].block == 128 and plans[64, 256, half].images == 64
    assert plans[64, 256, torch.float32].block == 64
    for (B, N, _), p in plans.items():
        assert p.tiles(B, N) * p.block <= 1.35 * B * N or B * N < 10_000
    small = kernels.plan(64, 20, 7, half, 132)
    assert small.DP == 16 and small.block_d == 16


def test_images_of_other_ranks_are_negatives_and_no_anchors(device):
    # The second of four ranks with two images each
    whole, weights = torch.randn(8, 10, 12, device=device), torch.randn(8, device=device)
    want_values, want_grad = value_and_grad(patch_contrastive_loss_reference, whole.double(), weights)
    before, here, behind, how = slice(0, 2), slice(2, 4), slice(4, 8), (torch.float32, "ieee")
    own = whole[here]
    sums, log_sums, token_sum = kernels.patch_contrastive_forward(own, [whole[before], whole[behind]], *how)
    values = (log_sums - token_sum.square().sum(1)) / 10**2
    torch.testing.assert_close(values.double(), want_values[here], rtol=1e-5, atol=1e-5)
    all_sums, _, _ = kernels.patch_contrastive_forward(whole, [], *how)
    torch.testing.assert_close(sums, all_sums[..., here])
    by_rank = all_sums.unflatten(2, (4, 2)).movedim(2, 0).contiguous()  # [4, N, N, 2]
    log_grad = weights / 10**2
    banks = [
        kernels.Negatives(whole[before], by_rank[:1], log_grad[before]),
        kernels.Negatives(whole[behind], by_rank[2:], log_grad[behind]),
    ]
    grad = kernels.patch_contrastive_backward(own, sums, token_sum, log_grad[here], banks, *how)
    assert relative(grad, want_grad[here]) < 1e-5


@pytest.mark.parametrize("scale, length", [(1e-4, 1e-3), (1e9, 100.0)])
def test_float16_gradients_survive_small_and_large_weights(device, scale, length):
    # Short tokens have large gradients, long ones small: float16 holds them, but not what they are made of.
    features = (length * torch.randn(3, 40, 32)).to(device, torch.float16)
    weights = torch.rand(3).to(device)
    unscaled = value_and_grad(triton, features.float(), weights)[1]
    got = value_and_grad(triton, features, weights * scale)[1].float() / scale
    assert relative(got, unscaled.double()) < 0.02  # 1e-4 times it is subnormal


def test_zero_tokens_have_no_gradient_and_zero_weights_give_zero(device):
    features = torch.randn(2, 18, 7, device=device)
    features[0, 3] = 0
    values, grad = value_and_grad(triton, features, torch.ones(2, device=device))
    torch.testing.assert_close(values, patch_contrastive_loss_reference(features), rtol=1e-5, atol=1e-5)
    assert (grad[0, 3] == 0).all() and (grad[0, 2] != 0).any()
    assert (value_and_grad(triton, features, torch.zeros(2, device=device))[1] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_single_nan_is_never_hidden(device, value):
    features = torch.randn(3, 20, 16, device=device)
    features[1, 2, 5] = value
    _, values, _ = torch.ops.ipt_fast.patch_contrastive_loss(features, "paper", 0.07, "local", "triton")
    assert values.isnan().all()


def test_strided_features_are_taken(device):
    packed = torch.randn(20, 3, 28, device=device)
    strided, weights = packed.transpose(0, 1)[..., ::2], torch.randn(3, device=device)
    want = value_and_grad(triton, strided.contiguous(), weights)
    for got, w in zip(value_and_grad(triton, strided, weights), want, strict=True):
        torch.testing.assert_close(got, w)


def test_registration(device):
    ops, features = torch.ops.ipt_fast, torch.randn(2, 6, 9, device=device)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        ops.patch_contrastive_loss.default, (features, "paper", 0.07, "local", "triton"), test_utils=checks
    )
    sums, token_sum = 1 + torch.rand(6, 6, 2, device=device), torch.randn(2, 9, device=device)
    arguments = (features, sums, token_sum, torch.rand(2, device=device), "paper", 0.07, "local", "triton")
    torch.library.opcheck(ops.patch_contrastive_loss_backward.default, arguments, test_utils=checks)


def test_compiled_without_a_graph_break_it_is_the_same(device):
    features, weights = torch.randn(3, 6, 9, device=device), torch.randn(3, device=device)
    want = value_and_grad(triton, features, weights)
    torch.compiler.reset()
    compiled = torch.compile(triton, fullgraph=True, backend="aot_eager")
    for got, w in zip(value_and_grad(compiled, features, weights), want, strict=True):
        torch.testing.assert_close(got, w)


def test_what_it_cannot_serve_is_refused_with_the_reason(device):
    assert backend_status(device)["triton"] is None
    features = torch.randn(2, 4, 8, device=device)
    with pytest.raises(RuntimeError, match='has a kernel for mode "paper" only'):
        patch_contrastive_loss(features, "supcon", impl="triton")
    with pytest.raises(RuntimeError, match="has no float64 kernel"):
        patch_contrastive_loss(features.double(), impl="triton")
