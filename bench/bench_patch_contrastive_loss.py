"""How much time and memory does the contrastive loss take when the matrix of all similarities is never stored?"""

import pytest
import torch

from bench.case import Work
from ipt_fast.ops import patch_contrastive_loss
from ipt_fast.ops.patch_contrastive_loss import backend_status

N, D = 256, 576
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# "medium" lets float32 features have bfloat16 products: torch.set_float32_matmul_precision("medium").
CONTENDERS = {
    "float32": ("eager", "cpu", "cpu medium", "triton", "triton medium"),
    "bfloat16": ("eager", "cpu", "triton"),
}
DENSE_LIMIT = {"cpu": 2 << 30, "cuda": 40 << 30}  # bytes that the eager loss may take here


def pytest_generate_tests(metafunc):
    metafunc.parametrize("dtype, contender", [(dtype, name) for dtype in DTYPES for name in CONTENDERS[dtype]])
    metafunc.parametrize("B", (16, 64, 256))


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def skip_where_it_cannot_run(device, small, contender, B):
    impl = contender.split()[0]
    if reason := backend_status(device)[impl]:
        pytest.skip(f"{impl} {reason}")
    if small and B > 16:
        pytest.skip(f"B={B} is left out of a small run")
    if device.type == "cpu" and B > 64:
        pytest.skip(f"B={B} takes a CPU too long")
    dense = 5 * 4 * (B * N) ** 2
    if impl == "eager" and dense > DENSE_LIMIT[device.type]:
        pytest.skip(f"the dense loss needs about {dense / 1e9:.1f} GB")
    return impl


def bench_forward_backward(measure, device, small, precision, dtype, contender, B):
    impl = skip_where_it_cannot_run(device, small, contender, B)
    precision("medium" if contender.endswith("medium") else "highest")
    tokens, width = (64, 96) if small else (N, D)
    features = torch.randn(B, tokens, width, device=device).to(DTYPES[dtype]).requires_grad_()

    def call():
        return torch.autograd.grad(patch_contrastive_loss(features, impl=impl), features)

    # Products of every pair of images: once forward, recomputed once, and two for the gradients.
    work = Work(flops=4 * B * (B - 1) * tokens**2 * width, bytes=2 * features.nbytes)
    measure(
        call,
        op="patch_contrastive_loss",
        contender=contender,
        shape=f"B={B} N={tokens} D={width}",
        dtype=dtype,
        work=work,
        direction="forward+backward",
        baseline="eager float32",
        gemm_dtype=torch.bfloat16 if contender.endswith("medium") else None,
    )
