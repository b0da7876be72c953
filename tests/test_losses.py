"""The pre-training loss is Eq. 4 to 6 of the paper, written out here in float64, pair by pair."""

import pytest
import torch

from ipt_fast.losses import l1_loss, pretrain_loss


def images():
    return torch.rand(2, 3, 6, 6, dtype=torch.float64) * 255, torch.rand(2, 3, 6, 6, dtype=torch.float64) * 255


def eq4(output, target):
    """Return the mean absolute difference over images, colours and pixels."""
    pairs = zip(output.flatten().tolist(), target.flatten().tolist(), strict=True)
    return sum(abs(a - b) for a, b in pairs) / output.numel()


def eq5(features):
    """Return the mean over images j and tokens a, b of -log(exp d(f_ja, f_jb) / sum over k != j of exp d(f_ja, f_kb)).

    d is the cosine of two tokens.
    """
    B, N, _ = features.shape
    unit = features / features.norm(dim=-1, keepdim=True)
    terms = []
    for j in range(B):
        for a in range(N):
            for b in range(N):
                others = sum((unit[j, a] @ unit[k, b]).exp() for k in range(B) if k != j)
                terms.append(others.log() - unit[j, a] @ unit[j, b])
    return torch.stack(terms).mean()


def test_the_loss_is_the_papers():
    output, target = images()
    features = torch.randn(3, 4, 5, dtype=torch.float64)
    loss = pretrain_loss(output, target, features, lam=0.3)
    assert float(loss.l1) == pytest.approx(eq4(output, target), rel=1e-12)
    assert float(loss.contrastive) == pytest.approx(float(eq5(features)), rel=1e-12)
    assert float(loss.total) == pytest.approx(eq4(output, target) + 0.3 * float(eq5(features)), rel=1e-12)


def test_both_parts_reach_the_gradient():
    output, target = images()
    features = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    output.requires_grad_()
    pretrain_loss(output, target, features).total.backward()
    assert torch.allclose(output.grad, (output - target).sign() / output.numel())
    (expected,) = torch.autograd.grad(0.1 * eq5(features), features)
    assert torch.allclose(features.grad, expected, rtol=1e-10)


def test_the_parts_reported_have_no_graph():
    output, target = images()
    output.requires_grad_()
    loss = pretrain_loss(output, target, torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True))
    assert loss.total.requires_grad and not loss.l1.requires_grad and not loss.contrastive.requires_grad


def test_mode_and_scope_are_passed_on():
    output, target = images()
    features = torch.randn(2, 4, 5, dtype=torch.float64)
    paper, supcon = (pretrain_loss(output, target, features, mode=mode).contrastive for mode in ("paper", "supcon"))
    assert not torch.isclose(paper, supcon)
    assert pretrain_loss(output, target, features, scope="global").contrastive == paper  # one process
    with pytest.raises(ValueError, match="nowhere"):
        pretrain_loss(output, target, features, scope="nowhere")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_make_the_loss_nan(value):
    output, target = images()
    features = torch.randn(2, 4, 5)
    features[1, 2, 3] = value
    loss = pretrain_loss(output, target, features)
    assert loss.total.isnan() and loss.contrastive.isnan() and loss.l1.isfinite()


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
