"""Are the losses of CLIP and SigLIP faster in tiles than with a matrix of logits, and how much memory do they hold?"""

import pytest
import torch
import torch.nn.functional as F

from bench.case import DTYPES, Work
from ipt_fast.ops import row_contrastive_loss
from ipt_fast.ops.row_contrastive_loss import backend_status

MODES = ("softmax", "sigmoid")
CONTENDERS = ("PyTorch", "gemm", "triton", "eager")
DENSE_LIMIT = {"cpu": 2 << 30, "cuda": 40 << 30}  # bytes that the matrices of logits may take here


def plain(x, y, scale, bias, mode):
    """Compute the loss as open_clip writes it; logits and what comes of them are float32, as under autocast."""
    logits = scale * (x @ y.T).float()
    if mode == "softmax":
        target = torch.arange(len(x), device=x.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    z = 2 * torch.eye(len(x), device=x.device) - 1
    return -F.logsigmoid(z * (logits + bias)).sum() / len(x)


@pytest.mark.parametrize("B", (4096, 32768, 1024))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("contender", CONTENDERS)
def bench_forward_backward(measure, device, small, contender, dtype, mode, B):
    if contender != "PyTorch" and (reason := backend_status(device)[contender]):
        pytest.skip(f"{contender} {reason}")
    B, D = (B // 8 if small else B), 512
    if device.type == "cpu" and B > 4096:
        pytest.skip(f"B={B} takes a CPU too long")
    if contender in ("PyTorch", "eager") and DENSE_LIMIT[device.type] < 5 * 4 * B * B:
        pytest.skip(f"the dense loss needs about {5 * 4 * B * B / 1e9:.1f} GB")
    rows = [F.normalize(torch.randn(B, D, device=device)).to(DTYPES[dtype]).requires_grad_() for _ in "xy"]
    scale, bias = (torch.tensor(v, device=device, requires_grad=True) for v in (14.3, -10.0))
    inputs = [*rows, scale] if mode == "softmax" else [*rows, scale, bias]

    def call():
        if contender == "PyTorch":
            loss = plain(*rows, scale, bias, mode)
        else:
            loss = row_contrastive_loss(*inputs, mode=mode, impl=contender)
        return torch.autograd.grad(loss, inputs)

    # Logits, and one GEMM for the gradient of each side
    work = Work(flops=6 * B * B * D, bytes=4 * rows[0].nbytes)
    names = {"direction": "forward+backward", "baseline": "PyTorch"}
    measure(call, "row_contrastive_loss", contender, f"{mode} B={B} D={D}", dtype, work, **names)
