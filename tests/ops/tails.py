"""Random tails and the chain that they stand for."""

import torch
import torch.nn.functional as F


def make_convs(scales, kernels, bias=True, channels=5, out=3, dtype=torch.float64, grad=False, device="cpu"):
    """Return (weight, bias) of each convolution, 4 features between; a kernel size is one number or two."""
    convs, c = [], channels
    for i, (k, r) in enumerate(zip(kernels, [*scales, 1], strict=True)):
        k = (k, k) if isinstance(k, int) else k
        width = (out if i == len(scales) else 4) * r * r
        weight = torch.randn(width, c, *k, dtype=torch.float64, device=device) / (c * k[0] * k[1]) ** 0.5
        b = torch.randn(width, dtype=torch.float64, device=device) if bias else None
        convs.append(tuple(None if t is None else t.to(dtype).requires_grad_(grad) for t in (weight, b)))
        c = width // (r * r)
    return convs


def written_out(x, convs, scales):
    """Return the chain as code has it."""
    for (w, b), r in zip(convs, [*scales, 1], strict=True):
        x = F.pixel_shuffle(F.conv2d(x, w, b, padding=(w.shape[2] // 2, w.shape[3] // 2)), r)
    return x
