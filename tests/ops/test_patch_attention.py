"""The contract of patch_attention on every backend that runs here without Triton."""

import itertools
import math
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from ipt_fast.ops import _patch_attention_cpu, patch_attention
from ipt_fast.ops.patch_attention import backend_status, patch_attention_reference
from tests.ops.results import relative
from tests.saved_tensors import saved_by

CPU = ("eager", "sdpa", "cpu")
NAMES = ("q", "k", "v", "q_embed", "k_embed")


def make(B=2, N=7, M=9, H=3, d=5, dtype=torch.float64, embeds=True):
    """Random q, k, v and embeds that require gradients."""
    shapes = [(B, N, H * d), (B, M, H * d), (B, M, H * d)] + [(N, H * d), (M, H * d)] * embeds
    return [torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def call(inputs, num_heads, **options):
    return patch_attention(**dict(itertools.zip_longest(NAMES, inputs, fillvalue=None)), num_heads=num_heads, **options)


def oracle(inputs, num_heads, grad):
    """Output and all gradients of the reference in float64."""
    inputs = [x.detach().double().requires_grad_() for x in inputs]
    out = patch_attention_reference(*inputs[:3], num_heads, *inputs[3:], (inputs[0].shape[-1] // num_heads) ** -0.5)
    return [out, *torch.autograd.grad(out, inputs, grad.double())]


@pytest.mark.parametrize("impl", CPU)
def test_equals_attention_of_embedded_inputs(impl):
    q, k, v, q_embed, k_embed = (x.detach() for x in make(N=9))
    weight = torch.randn(3, 15, 15, dtype=torch.float64)
    # W(x + E) = Wx + WE: what the network computes by folding is the attention of inputs with the embedding added.
    folded = patch_attention(
        *(F.linear(x, w) for x, w in zip((q, k, v), weight, strict=True)),
        num_heads=3,
        q_embed=F.linear(q_embed, weight[0]),
        k_embed=F.linear(k_embed, weight[1]),
        impl=impl,
    )
    added, _ = F.multi_head_attention_forward(
        *(x.transpose(0, 1) for x in (q + q_embed, k + k_embed, v)),
        15,
        3,
        weight.reshape(45, 15),
        None,
        None,
        None,
        False,
        0.0,
        torch.eye(15, dtype=torch.float64),
        None,
        need_weights=False,
    )
    assert relative(folded, added.transpose(0, 1)) < 1e-12


@pytest.mark.parametrize("impl", CPU)
@pytest.mark.parametrize("embeds", [True, False])
def test_gradcheck(impl, embeds):
    inputs = make(B=2, N=3, M=4, H=2, d=3, embeds=embeds)
    assert torch.autograd.gradcheck(lambda *x: call(x, 2, scale=0.7, impl=impl), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("B, N, M, H, d", [(1, 256, 256, 2, 48), (3, 59, 257, 2, 12), (2, 1, 255, 1, 59)])
def test_every_backend_is_as_exact_as_eager(dtype, B, N, M, H, d):
    inputs = make(B, N, M, H, d, dtype)
    grad = torch.randn(B, N, H * d).to(dtype)
    exact = oracle(inputs, H, grad)
    results = {}
    for impl in CPU:
        out = call(inputs, H, impl=impl)
        assert out.dtype == dtype and out.shape == (B, N, H * d) and out.is_contiguous()
        results[impl] = [out, *torch.autograd.grad(out, inputs, grad)]
    for impl in CPU[1:]:
        for name, ours, eager, wanted in zip(("out", *NAMES), results[impl], results["eager"], exact, strict=True):
            assert relative(ours, wanted) <= 2 * relative(eager, wanted) + 2 * torch.finfo(dtype).eps, (impl, name)


@pytest.mark.parametrize("scores", [1, 2 * 7 * 9, 2 * 3 * 7 * 9])  # one head, two heads, two images at once
def test_any_number_of_heads_at_once_gives_the_same(scores, monkeypatch):
    inputs = make(B=5, dtype=torch.float64)
    whole = call(inputs, 3, impl="eager")
    monkeypatch.setattr(_patch_attention_cpu, "_SCORES", scores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts = call(inputs, 3, impl="cpu")
    torch.testing.assert_close(parts, whole)
    grads = [torch.autograd.grad(out.square().sum(), inputs) for out in (parts, whole)]
    for ours, exact in zip(*grads, strict=True):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("impl", [None, *CPU])
def test_autocast_casts_all_inputs(impl):
    inputs = make(N=9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = call(inputs, 3, impl=impl)
        double = call([x.detach().double() for x in inputs], 3, impl=impl)
    plain = call([x.bfloat16() for x in inputs], 3, impl=impl)
    assert out.dtype == torch.bfloat16 and double.dtype == torch.float64
    assert torch.equal(out, plain)
    grads = torch.autograd.grad(out.float().square().sum(), inputs)
    assert [g.dtype for g in grads] == [torch.float32] * 5


def test_packed_views_are_read_and_their_gradients_written_without_a_copy():
    packed = torch.randn(2, 8, 3 * 12, requires_grad=True)
    views = packed.chunk(3, dim=-1)
    saved = []
    with (
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace,
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x),
    ):
        out = patch_attention(*views, num_heads=3, impl="sdpa")
    assert out.shape == (2, 8, 12)
    copied = [math.prod(e.input_shapes[0]) for e in trace.events() if e.name == "aten::copy_"]
    assert "ipt_fast::patch_attention" in {e.name for e in trace.events()}
    assert sum(n for n in copied if n > 1) <= 2 * 3 * 8  # at most the row sums [B, H, N], never a [B, N, D]
    in_packed = [x for x in saved if x.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()]
    assert len(in_packed) == 3
    for result in (out, patch_attention(*views, num_heads=3, impl="cpu")):
        grads = torch.autograd.grad(result.sum(), views)
        assert len({g.untyped_storage().data_ptr() for g in grads}) == 1
        assert [g.storage_offset() for g in grads] == [0, 12, 24]


@pytest.mark.parametrize("impl, floats_per_row", [("sdpa", 1), ("cpu", 0)])
def test_probabilities_are_not_saved(impl, floats_per_row):
    B, N, H, d = 2, 64, 3, 16
    inputs = make(B, N, N, H, d, torch.float32)
    saved = saved_by(lambda: call(inputs, H, impl=impl))
    assert sum(x.numel() for x in saved) == 4 * B * N * H * d + 2 * N * H * d + floats_per_row * B * H * N


@pytest.mark.parametrize("impl", CPU)
def test_nan_is_passed_on_to_its_own_image_alone(impl):
    q, k, v = (x.detach() for x in make(embeds=False))
    k[1, 2, 0] = torch.nan
    out = patch_attention(q, k, v, num_heads=3, impl=impl)
    assert out[1, :, :5].isnan().all()
    assert not out[0].isnan().any() and not out[1, :, 5:].isnan().any()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"q": torch.zeros(7, 15)}, ValueError, r"q must be \[B, N, D\].*got \[7, 15\]"),
        ({"v": torch.zeros(2, 8, 15)}, ValueError, r"k and v must both be \[2, M, 15\].*v \[2, 8, 15\]"),
        ({"k": torch.zeros(1, 9, 15)}, ValueError, r"got k \[1, 9, 15\]"),
        ({"num_heads": 4}, ValueError, r"D=15 must be a multiple of num_heads \(got 4\)"),
        ({"q_embed": torch.zeros(2, 7, 15)}, ValueError, r"q_embed must be \[7, 15\].*got \[2, 7, 15\]"),
        ({"k_embed": torch.zeros(7, 15)}, ValueError, r"k_embed must be \[9, 15\]"),
        ({"k_embed": torch.zeros(9, 15).half()}, TypeError, r"k_embed must have the dtype.*float16.*cast it"),
        ({"q": torch.zeros(2, 0, 15)}, ValueError, "at least one token.*N=0"),
        ({"impl": "cudnn"}, ValueError, 'impl="cudnn" is not a backend; choose one of sdpa, xformers, cpu, eager'),
        ({"impl": "xformers"}, RuntimeError, r"needs a CUDA device \(found cpu\); use impl="),
        ({"q": torch.zeros(2, 7, 15).int()}, TypeError, r"q must be float16, .* \(got torch.int32\)"),
        ({"q": None}, TypeError, r"q must be a tensor \(got NoneType\)"),
        ({"k_embed": [1.0]}, TypeError, r"k_embed must be a tensor \(got list\)"),
        ({"num_heads": None}, TypeError, r"num_heads must be a whole number \(got NoneType\)"),
        ({"num_heads": 0}, ValueError, r"num_heads must be at least 1 \(got 0\)"),
        ({"scale": "a"}, TypeError, "scale must be a number without gradient \\(got 'a'\\)"),
        ({"scale": torch.tensor(0.2)}, TypeError, r"scale must be a number without gradient \(got Tensor\)"),
        ({"scale": math.nan}, ValueError, r"scale must be finite \(got nan\)"),
    ],
)
def test_errors_name_what_is_wrong(change, error, message):
    arguments = {"q": torch.zeros(2, 7, 15), "k": torch.zeros(2, 9, 15), "v": torch.zeros(2, 9, 15), "num_heads": 3}
    with pytest.raises(error, match=f"patch_attention: .*{message}"):
        patch_attention(**{**arguments, **change})


def test_xformers_gets_heads_last_and_the_scale(monkeypatch):
    """The call itself, with a stand-in for the package: it has no CPU kernels."""
    from ipt_fast.ops import patch_attention as function

    module = sys.modules[function.__module__]
    seen = []

    def memory_efficient_attention(q, k, v, scale):
        seen.append((q.shape, k.shape, scale))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)

    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    q, k, v, q_embed, k_embed = make()
    out = module.BACKENDS["xformers"].forward(q, k, v, q_embed, k_embed, 3, 0.3)
    assert seen == [((2, 7, 3, 5), (2, 9, 3, 5), 0.3)]
    torch.testing.assert_close(out, patch_attention_reference(q, k, v, 3, q_embed, k_embed, 0.3))


def test_status_names_every_backend(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    status = backend_status("cpu")
    assert list(status) == ["sdpa", "xformers", "cpu", "eager", "triton", "cuda"]
    assert status["sdpa"] is None and status["cpu"] is None and status["eager"] is None
    assert "CUDA device" in status["xformers"]
    assert status["triton"] and status["cuda"]


@pytest.mark.parametrize("impl", [None, *CPU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_query_that_is_nan_or_inf_gives_nan_in_its_row_alone(impl, dtype, bad):
    for M in (1, 2, 3, 8, 15, 16, 33):
        q, k, v = torch.randn(2, 4, 16).to(dtype), torch.rand(2, M, 16).to(dtype), torch.randn(2, M, 16).to(dtype)
        q[0, 1, :8] = bad
        out = patch_attention(q, k, v, num_heads=2, impl=impl)
        wanted = patch_attention_reference(q.double(), k.double(), v.double(), 2, None, None, 8**-0.5)
        assert torch.equal(out.isnan(), wanted.isnan()) and out[0, 1, :8].isnan().all(), M


@pytest.mark.parametrize("dtype, apart", [(torch.float64, 1e-9), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("impl", CPU)
def test_scale_zero_and_empty_batches(impl, dtype, apart):
    q, k, v = torch.randn(3, 2, 16, 32, dtype=dtype)
    for _ in range(5):  # memory that nobody wrote may hold the right numbers once
        uniform = patch_attention(q, k, v, num_heads=2, scale=0, impl=impl).double()
        torch.testing.assert_close(uniform, v.double().mean(1, keepdim=True).expand_as(q), atol=apart, rtol=apart)
    assert patch_attention(q[:0], k[:0], v[:0], num_heads=2, impl=impl).shape == (0, 16, 32)


@pytest.mark.parametrize("impl", [None, *CPU])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["q", "k", "v", "q_embed", "k_embed"])
def test_scale_zero_hides_no_nan(impl, dtype, name):
    inputs = dict(zip(NAMES, (x.detach() for x in make(dtype=dtype)), strict=True))
    inputs[name][..., 2, 1] = torch.nan
    leaves = {n: x.requires_grad_() for n, x in inputs.items()}
    found = patch_attention(**leaves, num_heads=3, scale=0.0, impl=impl)
    wide = {n: x.detach().double().requires_grad_() for n, x in inputs.items()}
    wanted = patch_attention_reference(*list(wide.values())[:3], 3, wide["q_embed"], wide["k_embed"], 0.0)
    found = [found, *torch.autograd.grad(found.sum(), leaves.values())]
    for ours, exact in zip(found, [wanted, *torch.autograd.grad(wanted.sum(), wide.values())], strict=True):
        assert torch.equal(ours.isnan(), exact.isnan())
