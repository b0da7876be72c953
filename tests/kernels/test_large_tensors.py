"""Tensors of more than 2^31 elements: the last image of a batch of equal ones comes out as the first.

In Triton's interpreter the batches are small, and only the tests themselves are tried; the compile gate
(``python -m bench.offline``) looks for 64-bit offsets in the code of every kernel.
"""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")

from ipt_fast.kernels import degrade, norm_passes
from ipt_fast.kernels.patch_attention import patch_attention_backward, patch_attention_forward
from ipt_fast.kernels.patch_contrastive_loss import (
    Negatives,
    patch_contrastive_backward,
    patch_contrastive_forward,
)
from ipt_fast.kernels.pixelshuffle_tail import pixelshuffle_tail_forward


@pytest.fixture
def many(device, monkeypatch):
    """Return a function: elements of an image, and GB that the test takes -> images; two or three on a CPU."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)

    def count(elements, gigabytes):
        if device.type == "cpu":
            return 3
        torch.cuda.empty_cache()
        if (free := torch.cuda.mem_get_info()[0]) < gigabytes << 30:
            pytest.skip(f"needs {gigabytes} GB of GPU memory ({free >> 30} are free)")
        return 2**31 // elements + 2

    return count


def sizes(device):
    """Tokens, heads and features of attention."""
    return (256, 12, 576) if device.type == "cuda" else (32, 1, 48)


def test_attention(device, many):
    N, H, D = sizes(device)
    B, half = many(N * D, 24), {"dtype": torch.float16, "device": device}
    q, k, v, grad = (x.expand(B, N, D) for x in torch.randn(4, 1, N, D, **half))
    for M in (N, N - 16):  # a program for all keys of a head, and several
        out, lse = patch_attention_forward(q, k[:, :M], v[:, :M], None, None, H, 0.1)
        assert torch.equal(out[0], out[-1]) and torch.equal(lse[0], lse[-1])
        for x in patch_attention_backward(grad, q, k[:, :M], v[:, :M], None, None, out, lse, H, 0.1):
            assert not len(x) or torch.equal(x[0], x[-1])
        del out, lse, x


def test_attention_over_images_far_apart(device, many):
    N, H, D = sizes(device)
    apart = 2 * N * D if device.type == "cpu" else 2**30  # a stride of 32 bits, whose triple is none
    many(1, 16)
    memory = torch.zeros(3 * apart + 4 * N * D, dtype=torch.float16, device=device)
    q, k, v, grad = (memory[i * N * D :].as_strided((4, N, D), (apart, D, 1)) for i in range(4))
    for x in (q, k, v, grad):
        x.copy_(torch.randn(4, N, D))
    own = [x.contiguous() for x in (q, k, v)]
    results = [patch_attention_forward(*tensors, None, None, H, 0.1) for tensors in ((q, k, v), own)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    far = patch_attention_backward(grad, q, k, v, None, None, *results[0], H, 0.1)[0]
    near = patch_attention_backward(grad.contiguous(), *own, None, None, *results[0], H, 0.1)[0]
    assert torch.equal(far, near)


def test_contrastive(device, many):
    N, D = (256, 576) if device.type == "cuda" else (16, 16)
    K = many(N * N, 60)  # of which the float32 sums are the fewest
    features, other = torch.randn(2, 1, N, D, device=device).half()
    others, how = other.expand(K, N, D).contiguous(), (torch.float16, "ieee")
    near, far = (patch_contrastive_forward(features, [x], *how)[0] for x in (other, others))
    torch.testing.assert_close(far, near * K, rtol=5e-3, atol=0.0)
    own = torch.ones(N, N, 1, device=device), torch.zeros(1, D, device=device), torch.zeros(1, device=device)

    def gradient(images):
        last = torch.zeros(len(images), device=device)
        last[-1] = 1.0  # of the last image alone
        sums = torch.full((len(images), N, N, 1), float(len(images)), device=device)
        return patch_contrastive_backward(features, *own, [Negatives(images, sums, last)], *how)

    far, near = gradient(others) * K, gradient(other)
    assert near.abs().sum() > 0
    torch.testing.assert_close(far, near, rtol=1e-2, atol=1e-3 * near.abs().max().item())


def test_tail(device, many):
    side = 48 if device.type == "cuda" else 5
    x = torch.randn(1, 16, side, side, device=device).half().contiguous(memory_format=torch.channels_last)
    B = many(12 * side * side, 8)
    kernels, bias = (torch.randn(3, 3, *shape, device=device).half() for shape in ((5, 5, 16, 12), (12,)))
    out = pixelshuffle_tail_forward(x.expand(B, -1, -1, -1), kernels, bias, 2, [1, 1])
    assert torch.equal(out[0], out[-1]) and out[0].isfinite().all()


def test_norms(device, many):
    D = 2304 if device.type == "cuda" else 24
    rows, half = many(D, 40), {"dtype": torch.float16, "device": device}
    x, branch = (torch.randn(1, D, **half).expand(rows, D).contiguous() for _ in range(2))
    weight, bias = torch.randn(2, D, device=device)
    total, y, mean, rstd = norm_passes.add_and_normalise(x, branch, weight, bias, 1e-5)
    dx = norm_passes.normalise_backward_add(y, total, mean, rstd, weight, branch)[0]
    for made in (total, y, dx):
        assert torch.equal(made[0], made[-1]) and made[-1].isfinite().all()
    del made, total, y, dx
    grad = norm_passes.relu_backward(x.clone(), branch, torch.float32)[0]
    assert torch.equal(grad[-1], torch.where(branch[0] <= 0, 0, x[0]))


@pytest.mark.parametrize("kind", ["shrink", "noise", "rain"])
def test_degrade(device, many, kind):
    side = 64 if device.type == "cuda" else 16
    B = many(3 * side * side, 24)
    clean = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=device).expand(B, -1, -1, -1)
    seeds = torch.full((B,), 7, device=device)
    if kind == "shrink":
        made = degrade.shrink(clean, 2, 1)
    else:
        made = degrade.add_noise(clean, seeds, 25.0) if kind == "noise" else degrade.add_rain(clean, seeds, None)
    for x in made:
        assert torch.equal(x[0], x[-1])
    assert torch.equal(
        made[1][-1], clean[0, :, 2 : side - 2, 2 : side - 2].float() if kind == "shrink" else clean[0].float()
    )
