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


@pytest.mark.parametrize("block", [16, 64])
def test_any_tile_and_any_number_of_blocks_gives_the_same(device, monkeypatch, block):
    features, weights = torch.randn(5, 50, 40, device=device), torch.randn(5, device=device)
    whole = value_and_grad(triton, features, weights)
    monkeypatch.setattr(kernels, "_BLOCK_BYTES", 2 * 64 * 64 * 4 * 2)  # 2 images against 2
    monkeypatch.setattr(kernels, "_BLOCK_ROWS", 2 * 64)
    monkeypatch.setattr(
        kernels,
        "plan",
        lambda B, N, D, dtype, processors: kernels.Plan(block, 16, 4, 2, 64, 48, 4),
    )
    for part, wanted in zip(value_and_grad(triton, features, weights), whole, strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item())


def test_large_tiles_are_for_batches_that_fill_the_gpu():
    half = torch.bfloat16
    assert kernels.plan(64, 256, 576, half, 132).block == 128
    assert kernels.plan(8, 256, 576, half, 132).block == 64
    assert kernels.plan(64, 300, 576, half, 132).block == 64  # 320 tokens with padding; 384 with large tiles
    assert kernels.plan(64, 256, 576, torch.float32, 132).block == 64
    small = kernels.plan(64, 20, 7, half, 132)
    assert (small.NP, small.DP) == (32, 16)


def test_images_of_other_ranks_are_negatives_and_no_anchors(device):
    whole, weights = torch.randn(5, 20, 12, device=device), torch.randn(5, device=device)
    want_values, want_grad = value_and_grad(patch_contrastive_loss_reference, whole.double(), weights)
    own, others, here, how = whole[:2], whole[2:], slice(0, 2), (torch.float32, "ieee")
    sums, log_means, token_sum = kernels.patch_contrastive_forward(own, others, *how)
    values = log_means - token_sum.square().sum(1) / 20**2
    torch.testing.assert_close(values.double(), want_values[here], rtol=1e-5, atol=1e-5)
    all_sums, _, _ = kernels.patch_contrastive_forward(whole, None, *how)
    torch.testing.assert_close(sums, all_sums[here])
    coefficients = weights[:, None, None] / 20**2 / all_sums
    positive_grad = token_sum * (-2 / 20**2 * weights[here])[:, None]
    grad = kernels.patch_contrastive_backward(own, coefficients, positive_grad, others, *how)
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
    sums, positive_grad = 1 + torch.rand(2, 6, 6, device=device), torch.randn(2, 9, device=device)
    arguments = (features, sums, positive_grad, torch.rand(2, device=device), "paper", 0.07, "local", "triton")
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
