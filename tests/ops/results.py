"""What is compared: an output with all its gradients, by relative norm."""

import torch


def results(function, inputs, grad):
    """Return function(*inputs) and the gradients of those inputs that are there; the output's is ``grad``."""
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, [t for t in inputs if t is not None], grad.to(out.dtype))]


def relative(a, b):
    """Return the norm of a - b over that of b."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
