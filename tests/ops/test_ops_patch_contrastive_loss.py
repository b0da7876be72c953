import math

import pytest
import torch
from safetensors.torch import load_file

from ipt_fast.ops import patch_contrastive_loss


@pytest.fixture(scope="module")
def golden(shared):
    return load_file(shared / "golden" / "contrastive_eq5.safetensors")


@pytest.mark.parametrize("case", range(4))
def test_value_and_gradient_are_the_golden_ones_of_eq5(golden, case):
    features = golden[f"features.{case}"].requires_grad_()
    loss = patch_contrastive_loss(features, impl="eager")
    loss.backward()
    torch.testing.assert_close(loss, golden[f"loss.{case}"][0], rtol=1e-12, atol=0)
    want = golden[f"grad.{case}"]
    assert (features.grad - want).norm() <= 1e-12 * want.norm()


def eq5_in_loops(f):
    """Eq. 5 as a sum over indices, token by token."""
    B, N, _ = f.shape
    f = f / f.norm(dim=-1, keepdim=True)
    values = []
    for j in range(B):
        total = 0.0
        for i1 in range(N):
            for i2 in range(N):
                total += math.log(sum(math.exp(f[j, i1] @ f[k, i2]) for k in range(B) if k != j)) - f[j, i1] @ f[j, i2]
        values.append(total / N**2)
    return torch.stack(values)


def supcon_in_loops(f, temperature):
    """SupCon with the image as the label, patch by patch."""
    B, N, _ = f.shape
    f = (f / f.norm(dim=-1, keepdim=True)).reshape(B * N, -1)
    values = []
    for a in range(B * N):
        scores = {p: (f[a] @ f[p]).item() / temperature for p in range(B * N) if p != a}
        log_sum = math.log(sum(math.exp(s) for s in scores.values()))
        values.append(log_sum - sum(s for p, s in scores.items() if p // N == a // N) / (N - 1))
    return torch.tensor(values, dtype=f.dtype).reshape(B, N).mean(1)


@pytest.mark.parametrize("B, N, D", [(2, 2, 3), (3, 5, 7), (4, 3, 16)])
def test_the_reference_is_the_written_sum(B, N, D):
    features = torch.randn(B, N, D, dtype=torch.float64)
    got = patch_contrastive_loss(features, reduction="none", impl="eager")
    torch.testing.assert_close(got, eq5_in_loops(features), rtol=1e-12, atol=1e-12)
    got = patch_contrastive_loss(features, "supcon", temperature=0.2, reduction="none", impl="eager")
    torch.testing.assert_close(got, supcon_in_loops(features, 0.2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["paper", "supcon"])
def test_reductions_agree(mode):
    features = torch.randn(3, 4, 8)
    values = patch_contrastive_loss(features, mode, reduction="none")
    assert values.shape == (3,)
    torch.testing.assert_close(patch_contrastive_loss(features, mode), values.mean())
    torch.testing.assert_close(patch_contrastive_loss(features, mode, reduction="sum"), values.sum())


@pytest.mark.parametrize(
    "features, options, error, message",
    [
        (torch.randn(1, 4, 8), {}, ValueError, "at least two images.*got B=1"),
        (torch.randn(4, 8), {}, ValueError, r"must be \[B, N, D\] \(got shape \[4, 8\]\)"),
        (torch.ones(2, 4, 8, dtype=torch.int64), {}, TypeError, "got torch.int64"),
        ([[1.0]], {}, TypeError, "must be a tensor.*got list"),
        (torch.randn(2, 0, 8), {}, ValueError, "at least one token.*N=0"),
        (torch.full((2, 4, 8), torch.nan), {}, ValueError, "nan or inf"),
        (torch.full((2, 4, 8), torch.inf), {}, ValueError, "nan or inf"),
        (torch.full((2, 4, 8), 1e38), {}, ValueError, "norm beyond torch.float32"),
        (torch.randn(2, 4, 8), {"mode": "simclr"}, ValueError, 'mode="simclr" is unknown; use one of paper, supcon'),
        (torch.randn(2, 4, 8), {"reduction": "max"}, ValueError, 'reduction="max"'),
        (torch.randn(2, 4, 8), {"scope": "world"}, ValueError, 'scope="world"'),
        (torch.randn(2, 4, 8), {"temperature": 0.5}, ValueError, "Eq. 5 has no temperature"),
        (torch.randn(2, 4, 8), {"mode": "supcon", "temperature": 0.0}, ValueError, "temperature must be positive"),
        (torch.randn(2, 1, 8), {"mode": "supcon"}, ValueError, "N >= 2"),
        (torch.randn(2, 4, 8), {"impl": "cudnn"}, ValueError, "is not a backend"),
    ],
)
def test_wrong_calls_say_what_is_wrong(features, options, error, message):
    with pytest.raises(error, match=message):
        patch_contrastive_loss(features, **options)


@pytest.mark.parametrize("mode", ["paper", "supcon"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_single_nan_is_never_hidden(mode, value):
    features = torch.randn(3, 4, 8)
    features[1, 2, 5] = value
    with pytest.raises(ValueError, match="nan or inf"):
        patch_contrastive_loss(features, mode)


@pytest.mark.parametrize("mode", ["paper", "supcon"])
def test_zero_tokens_have_cosine_zero_and_no_gradient(mode):
    features = torch.randn(2, 5, 7, dtype=torch.float64)
    features[0, 3] = 0
    features.requires_grad_()
    loss = patch_contrastive_loss(features, mode)
    loss.backward()
    assert features.grad.isfinite().all()
    assert (features.grad[0, 3] == 0).all() and (features.grad[0, 2] != 0).any()
    wider = torch.cat([features.detach(), torch.zeros(2, 5, 1, dtype=torch.float64)], -1)
    wider[0, 3, -1] = 1  # orthogonal to every other token: cosine 0 as well, except with itself
    itself = (1 / 25 if mode == "paper" else 0.0) / 2
    torch.testing.assert_close(loss, patch_contrastive_loss(wider, mode) + itself)
