"""The pre-training loss is L1 + lam * contrastive, each part as the paper writes it."""

import pytest
import torch

from ipt_fast.losses import l1_loss, pretrain_loss
from ipt_fast.ops import patch_contrastive_loss


def images():
    return torch.rand(2, 3, 6, 6, dtype=torch.float64) * 255, torch.rand(2, 3, 6, 6, dtype=torch.float64) * 255


def test_the_parts_add_up():
    output, target = images()
    feats = torch.randn(2, 4, 5, dtype=torch.float64)
    loss = pretrain_loss(output, target, feats, lam=0.3)
    assert loss.l1 == (output - target).abs().mean()
    assert loss.contrastive == patch_contrastive_loss(feats)
    assert torch.isclose(loss.total, loss.l1 + 0.3 * loss.contrastive, rtol=1e-14)


def test_both_parts_reach_the_gradient():
    output, target = images()
    feats = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    output.requires_grad_()
    pretrain_loss(output, target, feats).total.backward()
    assert torch.allclose(output.grad, (output - target).sign() / output.numel())
    (expected,) = torch.autograd.grad(0.1 * patch_contrastive_loss(feats), feats)
    assert torch.allclose(feats.grad, expected, rtol=1e-12)


def test_lam_zero_needs_no_features():
    output, target = images()
    loss = pretrain_loss(output, target, None, lam=0)
    assert loss.total == loss.l1 and loss.contrastive == 0


def test_missing_features_are_named():
    output, target = images()
    with pytest.raises(ValueError, match="return_features=True"):
        pretrain_loss(output, target, None)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\[2, 3, 6, 6\] and target \[2, 3, 1, 1\]"):
        l1_loss(torch.zeros(2, 3, 6, 6), torch.zeros(2, 3, 1, 1))
