"""Calls of row_contrastive_loss, and what is compared of them."""

import torch

from ipt_fast.ops import row_contrastive_loss


def make_rows(B, D, mode, dtype=torch.float64, device="cpu", scale=20.0, bias=-3.0):
    """Rows of norm 1 or so, a scale and, for the sigmoid, a bias."""
    rows = [(torch.randn(B, D, dtype=torch.float64) / D**0.5).to(device, dtype) for _ in "xy"]
    numbers = [torch.tensor(scale, device=device, dtype=dtype), torch.tensor([bias], device=device, dtype=dtype)]
    return [*rows, *numbers[: 1 if mode == "softmax" else 2]]


def value_and_grads(inputs, weights, function=row_contrastive_loss, **options):
    """Values, and the gradients of all inputs where ``weights`` are those of the values."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    values = function(*inputs, **options)
    return [values.detach(), *torch.autograd.grad(values, inputs, weights.to(values.dtype))]


def relative(got, want):
    """Return the norm of the difference over that of ``want``, where that is not 0."""
    return ((got.double() - want).norm() / want.norm()).item() if want.any() else got.norm().item()
