"""The Triton kernels of patch_attention against float64, within the error budget of the eager reference."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")

from ipt_fast.kernels._patch_attention_tiles import rows_dense, split_head
from ipt_fast.ops import patch_attention
from ipt_fast.ops.patch_attention import patch_attention_reference

NAMES = ("out", "q", "k", "v", "q_embed", "k_embed")
# Triton's interpreter computes bfloat16 wrongly without saying so.
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]


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
    # With one key the gradients of q and k are zero: what is left of them is measured by what cancelled.
    least = grad.double().norm().item() if inputs[1].shape[1] == 1 else 0.0
    for name, a, b, wanted in zip(NAMES, ours, eager, exact, strict=False):
        assert a.dtype == dtype and a.isfinite().all(), name
        assert relative(a, wanted, least) <= 2 * relative(b, wanted, least) + 2 * eps, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "B, N, M, H, d",
    [
        (1, 256, 256, 1, 48),
        (2, 1, 1, 2, 12),
        (2, 59, 59, 1, 59),
        (1, 255, 255, 1, 48),
        (1, 257, 257, 1, 48),
        (2, 59, 257, 1, 32),
        (1, 257, 59, 1, 64),
        (1, 1, 255, 3, 48),
        (1, 128, 64, 2, 48),
        (1, 70, 33, 1, 128),
        (1, 40, 300, 1, 100),
        (3, 16, 48, 2, 7),
    ],
)
def test_error_is_within_twice_the_eager_one(device, dtype, B, N, M, H, d):
    compare(make(B, N, M, H, d, dtype, device), H)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N, M", [(64, 64), (40, 300)])
def test_without_embeddings_and_with_any_scale(device, dtype, N, M):
    for scale in (0.05, -0.1):
        compare(make(1, N, M, 2, 48, dtype, device, embeds=False), 2, scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_a_packed_projection_and_any_strides(device, dtype):
    B, N, H, d = 2, 48, 2, 48
    packed = torch.randn(B, N, 3 * H * d).to(dtype).to(device)
    compare([x.requires_grad_() for x in packed.chunk(3, dim=-1)], H)
    sparse = [torch.randn(B, N, H * d, 2).to(dtype).to(device)[..., 0].requires_grad_() for _ in range(3)]
    assert sparse[0].stride(-1) == 2
    compare(sparse, H)


def test_packed_views_are_read_where_they_lie(device):
    packed = torch.randn(2, 16, 3 * 2 * 48, device=device)
    for x in packed.chunk(3, dim=-1):
        assert rows_dense(x) is x


def test_gradients_come_packed(device):
    packed = torch.randn(2, 16, 3 * 96, device=device, requires_grad=True)
    q, k, v = packed.chunk(3, dim=-1)
    grads = torch.autograd.grad(patch_attention(q, k, v, num_heads=2, impl="triton").sum(), (q, k, v))
    assert [g.storage_offset() for g in grads] == [0, 96, 192]
    assert len({g.untyped_storage().data_ptr() for g in grads}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("M", [59, 300])
def test_nan_is_passed_on_to_its_own_head_alone(device, dtype, M):
    q, k, v = (x.detach() for x in make(2, 20, M, 2, 16, dtype, device, embeds=False))
    k[1, 2, 0] = torch.nan
    out = patch_attention(q, k, v, num_heads=2, impl="triton")
    assert out[1, :, :16].isnan().all()
    assert not out[0].isnan().any() and not out[1, :, 16:].isnan().any()


@pytest.mark.parametrize("N", [16, 17, 150])  # a whole tile, and what is left of one
def test_a_key_that_is_minus_infinity_gets_no_share_of_v_and_v_no_nan(device, N):
    q, k, v = (torch.randn(1, rows, 16, device=device).abs().requires_grad_() for rows in (N, 9, 9))
    with torch.no_grad():
        k[0, 3] = -torch.inf
    ours, eager = (patch_attention(q, k, v, num_heads=1, impl=impl) for impl in ("triton", "eager"))
    (dv,), (expected,) = (torch.autograd.grad(out.square().sum(), [v]) for out in (ours, eager))
    assert not expected[0, 3].any() and expected.isfinite().all()
    torch.testing.assert_close(ours, eager)
    torch.testing.assert_close(dv, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("M, scale", [(3, None), (33, None), (300, None), (33, 0.0)])
def test_a_query_that_is_nan_or_inf_gives_nan_in_its_row_alone(device, bad, M, scale):
    q, k, v = (x.detach() for x in make(1, 20, M, 2, 16, torch.float32, device, embeds=False))
    k = k.abs()
    q[0, 3, :16] = bad
    out = patch_attention(q, k, v, num_heads=2, scale=scale, impl="triton")
    assert out[0, 3, :16].isnan().all() and out.isnan().sum() == 16


def test_large_scores_do_not_overflow(device):
    q, k, v = (x.detach().mul(20) for x in make(1, 32, 300, 1, 32, torch.float32, device, embeds=False))
    out = patch_attention(q, k, v, num_heads=1, impl="triton")
    assert relative(out, patch_attention_reference(q.double(), k.double(), v.double(), 1, None, None, 32**-0.5)) < 1e-5


def test_opcheck_and_compile(device):
    inputs = make(2, 20, 20, 2, 12, torch.float32, device)
    args = (*(x.detach() for x in inputs), 2, 0.3, "triton")
    torch.library.opcheck(torch.ops.ipt_fast.patch_attention, args)

    def step(q, k, v, q_embed, k_embed):
        return patch_attention(q, k, v, num_heads=2, q_embed=q_embed, k_embed=k_embed, impl="triton")

    wanted = step(*inputs)
    out = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(out, wanted)
    for a, b in zip(torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_tiles_cover_every_head_and_those_of_48_are_not_padded():
    for d in range(1, 129):
        D0, D1 = split_head(d)
        assert d <= D0 + D1 and all(x == 0 or (x >= 16 and x & (x - 1) == 0) for x in (D0, D1)), d
    assert split_head(48) == (32, 16) and split_head(59) == (64, 0) and split_head(12) == (16, 0)


def test_what_it_cannot_serve_is_refused(device):
    x = torch.zeros(1, 16, 192, device=device)
    with pytest.raises(RuntimeError, match=r"head size D / num_heads of at most 128 \(got 192\)"):
        patch_attention(x, x, x, num_heads=1, impl="triton")
    with pytest.raises(RuntimeError, match="no float64 kernel"):
        patch_attention(x.double(), x.double(), x.double(), num_heads=2, impl="triton")
