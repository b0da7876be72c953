import math
import os
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from ipt_fast.ops import patch_contrastive_loss
from ipt_fast.ops.patch_contrastive_loss import backend_status, patch_contrastive_loss_reference

MODES = ("paper", "supcon")


@pytest.fixture(params=["eager", "gemm"])
def impl(request):
    return request.param


@pytest.fixture(scope="module")
def golden(shared):
    return load_file(shared / "golden" / "contrastive_eq5.safetensors")


@pytest.mark.parametrize("case", range(4))
def test_value_and_gradient_are_the_golden_ones_of_eq5(golden, impl, case):
    features = golden[f"features.{case}"].clone().requires_grad_()
    loss = patch_contrastive_loss(features, impl=impl)
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
def test_it_is_the_written_sum(impl, B, N, D):
    features = torch.randn(B, N, D, dtype=torch.float64)
    got = patch_contrastive_loss(features, reduction="none", impl=impl)
    torch.testing.assert_close(got, eq5_in_loops(features), rtol=1e-12, atol=1e-12)
    got = patch_contrastive_loss(features, "supcon", temperature=0.2, reduction="none", impl=impl)
    torch.testing.assert_close(got, supcon_in_loops(features, 0.2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_reductions_agree(impl, mode):
    features = torch.randn(3, 4, 8)
    values = patch_contrastive_loss(features, mode, reduction="none", impl=impl)
    assert values.shape == (3,)
    torch.testing.assert_close(patch_contrastive_loss(features, mode, impl=impl), values.mean())
    torch.testing.assert_close(patch_contrastive_loss(features, mode, reduction="sum", impl=impl), values.sum())


@pytest.mark.parametrize(
    "features, options, error, message",
    [
        (torch.randn(1, 4, 8), {}, ValueError, "at least two images.*got B=1"),
        (torch.randn(4, 8), {}, ValueError, r"must be \[B, N, D\] \(got shape \[4, 8\]\)"),
        (torch.ones(2, 4, 8, dtype=torch.int64), {}, TypeError, "got torch.int64"),
        ([[1.0]], {}, TypeError, "must be a tensor.*got list"),
        (torch.randn(2, 0, 8), {}, ValueError, "at least one token.*N=0"),
        (torch.randn(2, 4, 8), {"mode": "simclr"}, ValueError, 'mode="simclr" is unknown; use one of paper, supcon'),
        (torch.randn(2, 4, 8), {"reduction": "max"}, ValueError, 'reduction="max"'),
        (torch.randn(2, 4, 8), {"scope": "world"}, ValueError, 'scope="world"'),
        (torch.randn(2, 4, 8), {"temperature": 0.5}, ValueError, "Eq. 5 has no temperature"),
        (torch.randn(2, 4, 8), {"mode": "supcon", "temperature": 0.0}, ValueError, "temperature must be positive"),
        (torch.randn(2, 1, 8), {"mode": "supcon"}, ValueError, "N >= 2"),
        (torch.randn(2, 4, 8), {"mode": None}, TypeError, "mode must be one of paper, supcon"),
        (torch.randn(2, 4, 8), {"mode": "supcon", "temperature": None}, TypeError, "temperature must be a number"),
        (
            torch.randn(2, 4, 8),
            {"mode": "supcon", "temperature": torch.tensor(0.1)},
            TypeError,
            r"temperature must be a number without gradient \(got Tensor\)",
        ),
        (torch.randn(2, 4, 8), {"impl": "cudnn"}, ValueError, "is not a backend"),
        (
            torch.randn(2, 4, 8),
            {"mode": "supcon", "temperature": 0.01, "impl": "gemm"},
            RuntimeError,
            r"needs temperature >= 0.025 \(got 0.01\); use impl=\"eager\"",
        ),
    ],
)
def test_wrong_calls_say_what_is_wrong(features, options, error, message):
    with pytest.raises(error, match=message):
        patch_contrastive_loss(features, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])  # the last: its square is inf
def test_a_single_nan_inf_or_overflow_makes_the_loss_nan(impl, mode, value):
    features = torch.randn(3, 4, 8)
    features[1, 2, 5] = value
    features.requires_grad_()
    loss = patch_contrastive_loss(features, mode, impl=impl)
    assert loss.isnan()
    assert torch.autograd.grad(loss, features)[0].isnan().any()
    assert patch_contrastive_loss(torch.full((2, 4, 8), value), mode, impl=impl).isnan()


@pytest.mark.parametrize("mode", MODES)
def test_zero_tokens_have_cosine_zero_and_no_gradient(impl, mode):
    features = torch.randn(2, 5, 7, dtype=torch.float64)
    features[0, 3] = 0
    features.requires_grad_()
    loss = patch_contrastive_loss(features, mode, impl=impl)
    loss.backward()
    assert features.grad.isfinite().all()
    assert (features.grad[0, 3] == 0).all() and (features.grad[0, 2] != 0).any()
    wider = torch.cat([features.detach(), torch.zeros(2, 5, 1, dtype=torch.float64)], -1)
    wider[0, 3, -1] = 1  # orthogonal to every other token: cosine 0 as well, except with itself
    itself = (1 / 25 if mode == "paper" else 0.0) / 2
    torch.testing.assert_close(loss, patch_contrastive_loss(wider, mode, impl=impl) + itself)


def value_and_grad(features, weights, **options):
    features = features.detach().requires_grad_()
    values = patch_contrastive_loss(features, reduction="none", **options)
    (values * weights.to(values.dtype)).sum().backward()
    return values.detach(), features.grad


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


# Less than a block and no multiple of one; one image a block and several; one token an image.
SHAPES = [(2, 256, 64), (3, 59, 7), (5, 255, 48), (7, 257, 16), (300, 2, 33), (4, 16, 1024), (2, 1, 8), (600, 1, 5)]
EPS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-4}


def in_own_dtype(features, weights, mode):
    """Compute the reference with every operation in the dtype of the features: what 2 x its error allows."""
    features = features.detach().requires_grad_()
    values = patch_contrastive_loss_reference(features, mode)
    (values * weights.to(values.dtype)).sum().backward()
    return values.detach(), features.grad


@pytest.mark.parametrize("dtype", list(EPS), ids=str)
@pytest.mark.parametrize(
    "mode, shape", [(m, s) for m in MODES for s in SHAPES if m == "paper" or s[1] > 1], ids=lambda v: str(v)
)
def test_gemm_is_as_exact_as_eager(mode, shape, dtype):
    features, weights = torch.randn(shape, dtype=torch.float64).to(dtype), torch.randn(shape[0], dtype=torch.float64)
    want = value_and_grad(features.double(), weights, mode=mode, impl="eager")
    if dtype == torch.bfloat16 and mode == "paper":  # bfloat16 products where the CPU has them
        budget = in_own_dtype(features, weights, mode)
    else:
        budget = value_and_grad(features, weights, mode=mode, impl="eager")
    got = value_and_grad(features, weights, mode=mode, impl="gemm")
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and got[1].dtype == dtype
    for g, b, w in zip(got, budget, want, strict=True):
        assert relative(g, w) <= 2 * relative(b, w) + EPS[dtype]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 2)], ids=str)
def test_gradients_agree_with_finite_differences(impl, mode, shape):
    features = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f: patch_contrastive_loss(f, mode, reduction="none", impl=impl), (features,), fast_mode=False
    )


def test_bf16_products_of_float32_features_are_taken_where_pytorch_permits_them(monkeypatch):
    features, weights = torch.randn(4, 32, 24), torch.ones(4)
    exact = value_and_grad(features, weights, impl="gemm")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    monkeypatch.setattr("ipt_fast.ops._common.has_fast_bf16", lambda: True)
    rough = value_and_grad(features, weights, impl="gemm")
    for r, e in zip(rough, exact, strict=True):
        assert r.dtype == torch.float32 and 1e-7 < relative(r, e.double()) < 4e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "mode, shape", [("paper", (5, 59, 48)), ("paper", (2, 64, 7)), ("supcon", (4, 16, 33))], ids=str
)
def test_float16_products_with_float32_sums_as_on_a_gpu(monkeypatch, mode, shape, dtype):
    def mm(a, b, out_dtype=None, out=None):
        assert a.dtype == b.dtype == torch.float16 and out_dtype == torch.float32
        product = a.float() @ b.float()
        return product if out is None else out.copy_(product)

    features, weights = torch.randn(shape).to(dtype), torch.randn(shape[0])
    want = value_and_grad(features.double(), weights, mode=mode, impl="eager")
    budget = in_own_dtype(features, weights, mode)
    monkeypatch.setattr("ipt_fast.ops._patch_contrastive_loss_gemm.product_dtype", lambda *_: torch.float16)
    monkeypatch.setattr(torch, "mm", mm)
    got = value_and_grad(features, weights, mode=mode, impl="gemm")
    for g, b, w in zip(got, budget, want, strict=True):
        assert relative(g, w) <= 2 * relative(b, w) + EPS[dtype]
    scaled = value_and_grad(features, 1024 * weights, mode=mode, impl="gemm")  # a loss scale: the same bits
    torch.testing.assert_close(scaled[1] / 1024, got[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("statistics", ["kept", "made again"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_blocks_and_groups_of_any_size_give_the_same(monkeypatch, mode, dtype, statistics):
    gemm = "ipt_fast.ops._patch_contrastive_loss_gemm"
    features, weights = torch.randn(7, 5, 9).to(dtype), torch.randn(7)
    whole = value_and_grad(features, weights, mode=mode, impl="gemm")
    if statistics == "made again":
        monkeypatch.setattr(f"{gemm}._KEPT", 0)
    # Tokens in the rows of a block; images and positions whose gradient is summed, positions that they meet at a time
    for rows, images, positions, partners in ((10, 7, 5, 5), (5, 4, 5, 5), (10, 7, 2, 5), (6, 3, 2, 3), (5, 7, 1, 1)):
        sizes = {"rows": rows, "images": images, "positions": positions, "partners": partners}
        if mode == "supcon":  # tokens are images of one
            sizes.update(images=4 * images, positions=1, partners=1)
        plan = types.SimpleNamespace(cosines=150, held=False, **sizes)
        monkeypatch.setattr(f"{gemm}._plan", lambda *_, plan=plan: plan)
        got = value_and_grad(features, weights, mode=mode, impl="gemm")
        for g, want, again in zip(got, whole, value_and_grad(features, weights, mode=mode, impl="gemm"), strict=True):
            tolerance = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 1e-5}
            torch.testing.assert_close(g, want, **tolerance)
            assert torch.equal(g, again)


def test_forward_mode_derivatives_are_right_or_refused(impl):
    features, tangent = torch.randn(3, 4, 6, dtype=torch.float64), torch.randn(3, 4, 6, dtype=torch.float64)
    if impl == "gemm":
        with pytest.raises((RuntimeError, NotImplementedError), match="forward"):
            torch.func.jvp(lambda f: patch_contrastive_loss(f, impl=impl), (features,), (tangent,))
        return
    _, got = torch.func.jvp(lambda f: patch_contrastive_loss(f, impl=impl), (features,), (tangent,))
    torch.testing.assert_close(got, (torch.func.grad(patch_contrastive_loss)(features) * tangent).sum())


def test_vmap_gives_each_batch_its_gradient(impl):
    batches = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    gradient = torch.func.grad(lambda f: patch_contrastive_loss(f, impl=impl))
    torch.testing.assert_close(torch.vmap(gradient)(batches), torch.stack([gradient(f) for f in batches]))


def test_fx_records_the_call():
    traced = torch.fx.symbolic_trace(lambda f: patch_contrastive_loss(f, "supcon", temperature=0.2))
    features = torch.randn(3, 4, 6)
    assert traced(features) == patch_contrastive_loss(features, "supcon", temperature=0.2)


def test_default_device_and_dtype_change_nothing(impl):
    features, weights = torch.randn(3, 4, 6), torch.ones(3)
    want = value_and_grad(features, weights, impl=impl)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = value_and_grad(features, weights, impl=impl)
    finally:
        torch.set_default_dtype(torch.float32)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.float32 and torch.equal(g, w)


def test_tensors_without_data_give_shapes(impl):
    features = torch.empty(3, 4, 6, device="meta", dtype=torch.float16, requires_grad=True)
    loss = patch_contrastive_loss(features, impl=impl)
    loss.backward()
    assert loss.is_meta and loss.dtype == torch.float32 and features.grad.shape == features.shape
    with FakeTensorMode():
        assert patch_contrastive_loss(torch.randn(3, 4, 6), reduction="none", impl=impl).shape == (3,)
    assert patch_contrastive_loss(torch.randn(3, 4, 6), impl=impl).isfinite()


def test_second_derivative_is_right_or_refused(impl):
    features = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(patch_contrastive_loss(features, impl=impl), features, create_graph=True)
    if impl == "eager":
        assert torch.autograd.grad(grad.square().sum(), features)[0].isfinite().all()
        return
    with pytest.raises(RuntimeError, match=r'patch_contrastive_loss: .* cannot differentiate twice; use impl="eager"'):
        torch.autograd.grad(grad.square().sum(), features)


def test_torch_func_gives_the_gradient():
    features = torch.randn(3, 4, 6, dtype=torch.float64)
    grads = [
        torch.func.grad(lambda f, impl=i: patch_contrastive_loss(f, impl=impl))(features) for i in ("gemm", "eager")
    ]
    torch.testing.assert_close(*grads)


def test_no_token_gradient_points_along_the_token(impl):
    features = torch.randn(3, 6, 9, dtype=torch.float64, requires_grad=True)
    patch_contrastive_loss(features, impl=impl).backward()
    assert ((features.grad * features).sum(-1).abs() < 1e-16).all()


@pytest.mark.parametrize("mode", MODES)
def test_strided_features_and_expanded_gradients_are_taken(impl, mode):
    packed = torch.randn(5, 3, 14, dtype=torch.float64)
    strided = packed.transpose(0, 1)[..., ::2]  # [3, 5, 7]
    assert not strided.is_contiguous()
    weights = torch.ones(1, dtype=torch.float64).expand(3)
    got = value_and_grad(strided, weights, mode=mode, impl=impl)
    for g, w in zip(got, value_and_grad(strided.contiguous(), weights, mode=mode, impl=impl), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)


def test_autocast_leaves_the_loss_as_it_is(impl):
    features = torch.randn(3, 8, 16)
    want = patch_contrastive_loss(features, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(patch_contrastive_loss(features, impl=impl), want)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_registration_of_the_gemm_ops(mode, dtype):
    ops, features, how = torch.ops.ipt_fast, torch.randn(3, 4, 8).to(dtype), (mode, 0.07, "local", "gemm")
    kept, values, token_sum = ops.patch_contrastive_loss(features, *how)
    assert values.shape == (3,) and token_sum.shape == (3, 8)
    torch.library.opcheck(ops.patch_contrastive_loss.default, (features, *how))
    torch.library.opcheck(ops.patch_contrastive_loss_backward.default, (features, kept, token_sum, torch.rand(3), *how))


@pytest.mark.parametrize("mode", MODES)
def test_compiled_without_a_graph_break_it_is_the_same(impl, mode):
    features, weights = torch.randn(3, 6, 9), torch.randn(3)
    want = value_and_grad(features, weights, mode=mode, impl=impl)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda f: patch_contrastive_loss(f, mode, reduction="none", impl=impl) * weights,
        fullgraph=True,
        backend="aot_eager",
    )
    features = features.requires_grad_()
    values = compiled(features)
    values.sum().backward()
    torch.testing.assert_close(values / weights, want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features.grad, want[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_compiled_for_any_size_its_temperature_may_be_a_symbol(mode):
    compiled = torch.compile(
        lambda f: patch_contrastive_loss(f, mode), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for N in (5, 9):
        features = torch.randn(3, N, 8, requires_grad=True)
        torch.testing.assert_close(compiled(features), patch_contrastive_loss(features, mode), rtol=1e-5, atol=1e-6)


def test_status_and_automatic_choice(monkeypatch):
    status = backend_status("cpu")
    assert status["gemm"] is None and status["eager"] is None
    assert next(iter(status)) == "gemm" and list(backend_status("cuda"))[:2] == ["triton", "gemm"]
    assert backend_status("cuda")["gemm"] is None  # also where no kernel of Triton's can run
    features = torch.randn(2, 3, 4)
    monkeypatch.setenv("IPT_FAST_IMPL", "gemm")
    by_name = patch_contrastive_loss(features)
    monkeypatch.delenv("IPT_FAST_IMPL")
    assert torch.equal(by_name, patch_contrastive_loss(features, impl="gemm"))
    # Too small a temperature for sums without a maximum: the automatic choice passes over to eager.
    small = patch_contrastive_loss(features, "supcon", temperature=0.001)
    assert torch.equal(small, patch_contrastive_loss(features, "supcon", temperature=0.001, impl="eager"))


MEASURED_PROCESS = """
import re, sys, torch
from ipt_fast.ops import patch_contrastive_loss

def megabytes(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024 / 1e6

def forward_backward(features):
    return torch.autograd.grad(patch_contrastive_loss(features, impl="gemm"), features)

B, N, D, dtype = *map(int, sys.argv[1:4]), getattr(torch, sys.argv[4])
features = torch.randn(B, N, D).to(dtype).requires_grad_()
forward_backward(features)  # libraries are loaded, their code is made
before = megabytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew
forward_backward(features)
print(megabytes("VmHWM") - before - features.nbytes / 1e6)  # the most it ever was, without the gradient
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's account of memory")
@pytest.mark.parametrize(
    "B, D, dtype, limit", [(16, 576, "float32", 35), (16, 576, "bfloat16", 40), (32, 48, "float32", 50)]
)
def test_memory_stays_far_below_the_matrix_of_similarities(B, D, dtype, limit):
    # The matrix alone has 67 MB for 16 images and 268 MB for 32; the limits are for all that the process takes.
    command = [sys.executable, "-c", MEASURED_PROCESS, str(B), "256", str(D), dtype]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert float(done.stdout) < limit
