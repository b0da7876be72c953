"""Every op at the batch sizes of a training, against the eager reference a few images at a time, in float64.

An op may miss by twice what the reference misses by when it computes in the op's own dtype.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bench.proof.check import Row, Setting, distance, judge, short
from ipt_fast.ops import (
    degrade,
    ffn,
    layernorm_linear,
    patch_attention,
    patch_contrastive_loss,
    pixelshuffle_tail,
    row_contrastive_loss,
)
from ipt_fast.ops.degrade import backend_status as degrade_status
from ipt_fast.ops.patch_contrastive_loss import unit_tokens
from ipt_fast.tasks import TASKS

Function = Callable[..., Tensor]
_CHUNK = 8  # images
_FAR = 2**31  # elements: beyond these an offset needs 64 bits


def whole(function: Function, images: Sequence[Tensor], shared: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Return the result and the gradients of ``images`` [B, ...] and ``shared`` for the gradient ``grad`` of it."""
    inputs = [x.detach().requires_grad_() for x in (*images, *shared)]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def chunked(
    function: Function, images: Sequence[Tensor], shared: Sequence[Tensor], grad: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Return the same in ``dtype``, a few images at a time; the gradients of ``shared`` are summed in float64."""
    common = [x.to(dtype) for x in shared]
    outs: list[list[Tensor]] = []
    totals = [torch.zeros_like(x, dtype=torch.float64) for x in shared]
    for first in range(0, len(grad), _CHUNK):
        part = [x[first : first + _CHUNK].to(dtype) for x in (*images, grad)]
        found = whole(function, part[:-1], common, part[-1])
        outs.append(found[: 1 + len(images)])
        for total, x in zip(totals, found[1 + len(images) :], strict=True):
            total += x.double()
    return [*(torch.cat(parts) for parts in zip(*outs, strict=True)), *totals]


def compare(
    case: str, function: Callable[[str | None], Function], images: Sequence[Tensor], shared: Sequence[Tensor],
    grad: Tensor,
) -> Row:  # fmt: skip
    """Compare ``function(None)`` with ``function("eager")``; both map images and shared tensors to a tensor."""
    dtype = grad.dtype
    found = whole(function(None), images, shared, grad)
    exact = chunked(function("eager"), images, shared, grad, torch.float64)
    rounded = chunked(function("eager"), images, shared, grad, dtype)
    eps = torch.finfo(dtype).eps
    names = ["result", *(f"gradient {i + 1}" for i in range(len(images) + len(shared)))]
    errors = [
        (name, distance(x, e), 2 * max(distance(r, e), 2 * eps))
        for name, x, e, r in zip(names, found, exact, rounded, strict=True)
    ]
    return judge(f"{case}, {short(dtype)}", errors)


def attention(B: int, N: int, D: int, H: int, kind: dict) -> Row:
    """Compare self-attention with embeddings, q, k and v views of one projection."""
    q, k, v = torch.randn(B, N, 3 * D, **kind).chunk(3, dim=-1)
    embeds = torch.randn(2, N, D, **kind).unbind()

    def function(impl: str | None) -> Function:
        return lambda q, k, v, qe, ke: patch_attention(q, k, v, num_heads=H, q_embed=qe, k_embed=ke, impl=impl)

    return compare(f"patch_attention B={B} N={N}", function, (q, k, v), embeds, torch.randn(B, N, D, **kind))


def linear(B: int, N: int, D: int, kind: dict) -> Row:
    """Compare LayerNorm and the packed projection."""
    shared = [torch.randn(shape, **kind) for shape in ((D,), (D,), (3 * D, D))]
    function = lambda impl: lambda *tensors: layernorm_linear(*tensors, impl=impl)  # noqa: E731
    grad = torch.randn(B, N, 3 * D, **kind)
    return compare(f"layernorm_linear B={B} N={N}", function, [torch.randn(B, N, D, **kind)], shared, grad)


def feed_forward(B: int, N: int, D: int, kind: dict) -> Row:
    """Compare the feed-forward network with its residual."""
    shared = [torch.randn(s, **kind) / s[-1] ** 0.5 for s in ((D,), (D,), (4 * D, D), (4 * D,), (D, 4 * D), (D,))]
    function = lambda impl: lambda *tensors: ffn(*tensors, impl=impl)  # noqa: E731
    x, grad = torch.randn(2, B, N, D, **kind).unbind()
    return compare(f"ffn B={B} N={N}", function, [x], shared, grad)


def tail(B: int, C: int, side: int, scales: tuple[int, ...], kind: dict) -> Row:
    """Compare an EDSR tail; without gradients, as the fused kernel is for inference."""
    widths = [C * r * r for r in scales] + [3]
    convs = [(torch.randn(w, C, 3, 3, **kind) / (3 * C**0.5), torch.randn(w, **kind)) for w in widths]
    x = torch.randn(B, C, side, side, **kind)

    def run(dtype: torch.dtype, images: Tensor, impl: str | None) -> Tensor:
        with torch.no_grad():
            return pixelshuffle_tail(
                images.to(dtype), [(w.to(dtype), b.to(dtype)) for w, b in convs], scales, impl=impl
            )

    parts = x.split(_CHUNK)
    found = run(x.dtype, x, None)
    exact, rounded = (torch.cat([run(d, p, "eager") for p in parts]) for d in (torch.float64, x.dtype))
    allowed = 2 * max(distance(rounded, exact), torch.finfo(x.dtype).eps)
    case = f"pixelshuffle_tail {'x'.join(map(str, scales))} B={B}, {short(x.dtype)}"
    return judge(case, [("result", distance(found, exact), allowed)])


def contrastive_by_image(features: Tensor, gemm_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return Eq. 5 and its gradient, an anchor image at a time; unit tokens are rounded to ``gemm_dtype`` before."""
    B, N, D = features.shape
    f = unit_tokens(features.detach()).to(gemm_dtype).to(features.dtype)
    total, grad = f.new_zeros(()), torch.zeros_like(f)
    for j in range(B):
        own = f.clone().requires_grad_()
        d = (own[j] @ own.view(B * N, D).T).view(N, B, N)  # cosines of image j's tokens with all
        others = torch.arange(B, device=f.device) != j
        loss = (d[:, others].logsumexp(1) - d[:, j]).mean() / B
        grad += torch.autograd.grad(loss, own)[0]
        total += loss.detach()
    x = features.detach().requires_grad_()
    return total, torch.autograd.grad(unit_tokens(x), x, grad)[0]


def contrastive(B: int, N: int, D: int, kind: dict) -> Row:
    """Compare the loss and its gradient with Eq. 5, an image at a time; the budget is that of 16-bit cosines."""
    features = torch.randn(B, N, D, **kind)
    x = features.detach().requires_grad_()
    loss = patch_contrastive_loss(x)
    (grad,) = torch.autograd.grad(loss, x)
    wanted, wanted_grad = contrastive_by_image(features.double(), torch.float64)
    rounded, rounded_grad = contrastive_by_image(features.float(), features.dtype)
    eps = torch.finfo(features.dtype).eps
    unit = max(eps, torch.finfo(loss.dtype).eps * abs(wanted.item()))  # the loss itself is rounded: above 1, by more
    errors = [
        ("loss", (loss.double() - wanted).abs().item(), 2 * max((rounded.double() - wanted).abs().item(), unit)),
        ("gradient", distance(grad, wanted_grad), 2 * max(distance(rounded_grad, wanted_grad), eps)),
    ]
    return judge(f"patch_contrastive_loss B={B} N={N}, {short(features.dtype)}", errors)


def contrastive_rows(pairs: int, D: int, mode: str, kind: dict) -> Row:
    """Compare the loss over rows and its gradients with those of all logits at once."""
    rows = [torch.nn.functional.normalize(torch.randn(pairs, D, **kind), dim=1) for _ in range(2)]
    numbers = [torch.tensor(x, device=kind["device"]) for x in ((14.3,) if mode == "softmax" else (14.3, -10.0))]

    def run(dtype: torch.dtype, impl: str | None) -> list[Tensor]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (*rows, *numbers)]
        loss = row_contrastive_loss(*inputs, mode=mode, impl=impl)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    found, exact, rounded = run(rows[0].dtype, None), run(torch.float64, "eager"), run(rows[0].dtype, "eager")
    eps = torch.finfo(rows[0].dtype).eps
    names = ("loss", "gradient of x", "gradient of y", "gradient of scale", "gradient of bias")
    errors = [
        # That of scale and bias is one number, a sum of random rows that nearly cancels
        (name, distance(a, x), 2 * max(distance(r, x), eps if a.dim() else max(eps, 5e-6)))
        for name, a, x, r in zip(names, found, exact, rounded, strict=False)
    ]
    return judge(f"row_contrastive_loss {mode}, {pairs} pairs, {short(rows[0].dtype)}", errors)


def degradation(B: int, task: str, device: torch.device) -> Row:
    """Compare the device's own backend with plain PyTorch on a CPU: bits, or rounding of log, cos and exp."""
    side = 48 if not task.startswith("sr") else 48 * int(task[2:])
    clean = torch.randint(256, (B, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(B))
    seeds = torch.arange(B)
    taken = next(name for name, reason in degrade_status(device).items() if reason is None)
    found = degrade(clean.to(device), task, seeds=seeds.to(device), impl=taken)[0].cpu()
    few = slice(0, 4 * _CHUNK)  # each image depends on its seed alone
    wanted = degrade(clean[few], task, seeds=seeds[few], impl="eager")[0]
    apart = (found[few] - wanted).abs()
    # A pixel on the edge of a streak may fall on its other side.
    beyond = (apart > (0.0 if task.startswith("sr") else 2e-3)).double().mean().item()
    allowed = 1e-4 if task == "derain" else 1e-12
    return judge(f"degrade {task} B={B}, {taken}", [("pixels beyond rounding", beyond, allowed)])


def far_offsets(device: torch.device) -> Iterator[Row]:
    """Yield rows on tensors of more than 2^31 elements: the last images must be right."""
    N, D, H, kind = 256, 576, 12, {"device": device, "dtype": torch.float16}
    B = _FAR // (3 * N * D) + 3
    case = f"patch_attention B={B}, offsets beyond 2^31"
    if torch.cuda.get_device_properties(device).total_memory < 40e9:
        yield Row(case, None, "needs 40 GB of GPU memory")
        return
    q, k, v = torch.randn(B, N, 3 * D, **kind).chunk(3, dim=-1)
    with torch.no_grad():
        found = patch_attention(q, k, v, num_heads=H)[-2:]
        exact = patch_attention(*(x[-2:].double() for x in (q, k, v)), num_heads=H, impl="eager")
        rounded = patch_attention(*(x[-2:] for x in (q, k, v)), num_heads=H, impl="eager")
    yield judge(case, [("result", distance(found, exact), 2 * max(distance(rounded, exact), 1e-3))])
    del q, k, v
    from ipt_fast.ops._registry import triton_missing

    case = "patch_contrastive_loss, kernel against 15,000 other images"
    if reason := triton_missing(device):
        yield Row(case, None, f'impl="triton" {reason}')
        return
    from ipt_fast.kernels.patch_contrastive_loss import patch_contrastive_forward

    features, others = torch.randn(2, N, D, **kind), torch.randn(15_000, N, D, **kind)
    sums = patch_contrastive_forward(features, others, features.dtype, "ieee")[0]
    f, total = unit_tokens(features.double()), torch.zeros(2, N, N, dtype=torch.float64, device=device)
    for part in (*others.split(100), features.flip(0)[:1], features.flip(0)[1:]):
        u = unit_tokens(part.double())
        each = [0, 1] if len(part) > 1 else [int(torch.equal(part[0], features[0]))]  # not an image against itself
        for j in each:
            total[j] += (f[j] @ u.flatten(0, 1).T).view(N, len(part), N).exp().sum(1)
    yield judge(case, [("sums", distance(sums, total), 2e-3)])


def check(setting: Setting) -> Iterator[Row]:
    """Yield a row of every op in every dtype, at B=64 and 256 and the sizes of "base"."""
    torch.manual_seed(0)
    N, D, H, C, side = (16, 48, 4, 8, 12) if setting.small else (256, 576, 12, 64, 48)
    for B in (4, 12) if setting.small else (64, 256):
        for dtype in setting.dtypes:
            kind = {"device": setting.device, "dtype": dtype}
            yield attention(B, N, D, H, kind)
            yield contrastive(B, N, D, kind)
            yield linear(B, N, D, kind)
            yield feed_forward(B, N, D, kind)
            for scales in ((2,), (3,), (2, 2)):
                yield tail(B, C, side, scales, kind)
        for task in TASKS:
            yield degradation(B, task, setting.device)
    for pairs in (65, 193) if setting.small else (1024, 4097):
        for dtype in setting.dtypes:
            for mode in ("softmax", "sigmoid"):
                yield contrastive_rows(pairs, 512, mode, {"device": setting.device, "dtype": dtype})
    if setting.device.type == "cuda":
        yield from far_offsets(setting.device)
