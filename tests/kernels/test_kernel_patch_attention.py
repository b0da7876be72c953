"""The Triton kernels of patch_attention against float64, within the error budget of the eager reference."""

import os

import pytest
import torch

from ipt_fast.ops import patch_attention
from ipt_fast.ops.patch_attention import patch_attention_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NAMES = ("out", "q", "k", "v", "q_embed", "k_embed")
# Triton's interpreter computes bfloat16 wrongly without saying so.
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that no kernel has written reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def relative(a, b, least=0.0):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=least)).item()


def make(B, N, M, H, d, dtype, device, embeds=True):
    shapes = [(B, N, H * d), (B, M, H * d), (B, M, H * d)] + [(N, H * d), (M, H * d)] * embeds
    return [torch.randn(s).to(dtype).to(device).requires_grad_() for s in shapes]


def run(function, inputs, grad):
    """Output and all gradients."""
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def compare(inputs, H, scale=None):
    B, N, D = inputs[0].shape
    dtype, scale = inputs[0].dtype, scale or (D // H) ** -0.5

    def reference(q, k, v, q_embed=None, k_embed=None):
        return patch_attention_reference(q, k, v, H, q_embed, k_embed, scale)

    def triton(q, k, v, q_embed=None, k_embed=None):
        return patch_attention(q, k, v, num_heads=H, q_embed=q_embed, k_embed=k_embed, scale=scale, impl="triton")

    grad = torch.randn(B, N, D).to(inputs[0])
    exact = run(reference, [x.detach().double().requires_grad_() for x in inputs], grad.double())
    eager, ours = run(reference, inputs, grad), run(triton, inputs, grad)
    eps = torch.finfo(dtype).eps
    least = eps * grad.double().norm().item()  # with one key the gradients of q and k are zero
    for name, a, b, wanted in zip(NAMES, ours, eager, exact, strict=False):
        assert a.dtype == dtype and a.isfinite().all(), name
        assert relative(a, wanted, least) <= 2 * relative(b, wanted, least) + eps, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "B, N, M, H, d",
    [
        (1, 256, 256, 2, 48),
        (2, 1, 1, 2, 12),
        (2, 59, 59, 1, 59),
        (1, 255, 255, 1, 48),
        (1, 257, 257, 1, 48),
        (2, 59, 257, 2, 32),
        (1, 257, 59, 1, 64),
        (1, 1, 255, 3, 48),
        (1, 70, 33, 1, 128),
        (1, 40, 300, 1, 100),
        (3, 16, 16, 2, 1),
    ],
)
def test_error_is_within_twice_the_eager_one(device, dtype, B, N, M, H, d):
    compare(make(B, N, M, H, d, dtype, device), H)
