"""How much time and memory does the contrastive loss take when the matrix of all similarities is never stored?"""

import pytest
import torch

from bench.case import DTYPES, Work
from ipt_fast.ops import patch_contrastive_loss
from ipt_fast.ops.patch_contrastive_loss import backend_status

# "medium" lets float32 features have bfloat16 products: torch.set_float32_matmul_precision("medium").
# What tells most first.
CASES = [("bfloat16", name) for name in ("eager", "gemm", "triton")]
CASES += [("float32", name) for name in ("eager", "gemm", "gemm medium", "triton", "triton medium")]
DENSE_LIMIT = {"cpu": 2 << 30, "cuda": 40 << 30}  # bytes that the eager loss may take here


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def skip_where_it_cannot_run(device, small, impl, B):
    if reason := backend_status(device)[impl]:
        pytest.skip(f"{impl} {reason}")
    if small and B > 16:
        pytest.skip(f"B={B} is left out of a small run")
    if device.type == "cpu" and B > 64:
        pytest.skip(f"B={B} takes a CPU too long")
    dense = 5 * 4 * (B * 256) ** 2
    if impl == "eager" and dense > DENSE_LIMIT[device.type]:
        pytest.skip(f"the dense loss needs about {dense / 1e9:.1f} GB")


@pytest.mark.parametrize("B", (64, 256, 16))
@pytest.mark.parametrize("dtype, contender", CASES)
def bench_forward_backward(measure, device, small, precision, dtype, contender, B):
    impl, *medium = contender.split()
    skip_where_it_cannot_run(device, small, impl, B)
    precision("medium" if medium else "highest")
    N, D = (64, 96) if small else (256, 576)
    features = torch.randn(B, N, D, device=device).to(DTYPES[dtype]).requires_grad_()
    call = lambda: torch.autograd.grad(patch_contrastive_loss(features, impl=impl), features)  # noqa: E731
    # Products of every pair of images: once forward, recomputed once, and two for the gradients.
    work = Work(flops=4 * B * (B - 1) * N**2 * D, bytes=2 * features.nbytes)
    options = {"direction": "forward+backward", "baseline": "eager float32"}
    options["gemm_dtype"] = torch.bfloat16 if medium else None
    measure(call, "patch_contrastive_loss", contender, f"B={B} N={N} D={D}", dtype, work, **options)
