"""A call of every Triton kernel through what launches it, for what must hold of all of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from ipt_fast.kernels import norm_passes
from ipt_fast.ops import (
    degrade,
    ffn,
    layernorm_linear,
    patch_attention,
    patch_contrastive_loss,
    pixelshuffle_tail,
    row_contrastive_loss,
)
from tests.ops.tails import make_convs

Call = Callable[[], list[Tensor]]
# Images, tokens, sides: enough for several waves of a GPU, and few enough for the interpreter.
LARGE, SMALL = {"B": 64, "N": 256, "side": 48}, {"B": 1, "N": 32, "side": 7}


def calls(device: torch.device, large: bool) -> dict[str, Call]:
    """Return name -> call with inputs of its own, which returns all results, gradients last."""
    torch.manual_seed(0)
    B, N, side = (LARGE if large else SMALL).values()
    half = {"device": device, "dtype": torch.float16}
    made: dict[str, Call] = {}
    for name, M in (("attention, a head a program", N), ("attention, many programs a head", N + 16)):
        tensors = [torch.randn(B, rows, 96, **half) for rows in (N, M, M)] + [
            torch.randn(r, 96, **half) for r in (N, M)
        ]
        made[name] = with_gradients(attend, tensors)
    made["contrastive"] = with_gradients(
        lambda x: patch_contrastive_loss(x, impl="triton"), [torch.randn(B + 1, N, 48, **half)]
    )
    pairs = [torch.randn(16 * B + 1, 48, **half) for _ in "xy"]
    numbers = [torch.ones((), **half), -torch.ones((), **half)]
    made["rows, softmax"] = with_gradients(lambda *t: row_contrastive_loss(*t, impl="triton"), [*pairs, numbers[0]])
    made["rows, sigmoid"] = with_gradients(
        lambda *t: row_contrastive_loss(*t, mode="sigmoid", impl="triton"), [*pairs, *numbers]
    )
    convs = make_convs((2,), (3, 3), True, 16, 3, torch.float16, device=device)
    image = torch.randn(B, 16, side, side + 2, **half)
    made["tail"] = lambda: [pixelshuffle_tail(image, convs, (2,), impl="triton")]
    tokens = [torch.randn(shape, **half) for shape in ((B, N, 48), (48,), (48,), (96, 48), (96,), (48, 96), (48,))]
    made["layernorm_linear"] = with_gradients(lambda *t: layernorm_linear(*t, impl="triton"), tokens[:5])
    made["ffn"] = with_gradients(lambda *t: ffn(*t, impl="triton"), tokens)
    made["add, norm"] = lambda: add_norm(tokens[0], tokens[0].flip(0), *tokens[1:3])
    crops = torch.randint(0, 256, (B, 3, 2 * side, 2 * side), dtype=torch.uint8, device=device)
    seeds = torch.arange(B, device=device)
    rain = lambda seeds, height, width: torch.ones(1, height, width, device=device)  # noqa: E731
    made["shrink"] = lambda: list(degrade(crops, "sr2", margin=1, impl="triton"))
    made["noise"] = lambda: list(degrade(crops, "denoise30", seeds=seeds, impl="triton"))
    made["rain"] = lambda: list(degrade(crops, "derain", seeds=seeds, impl="triton"))
    made["rain of the caller"] = lambda: list(degrade(crops, "derain", seeds=seeds, rain=rain, impl="triton"))
    return made


def attend(q: Tensor, k: Tensor, v: Tensor, q_embed: Tensor, k_embed: Tensor) -> Tensor:
    return patch_attention(q, k, v, num_heads=2, q_embed=q_embed, k_embed=k_embed, impl="triton")


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> Call:
    """Return a call of ``function`` and of its gradients for one upstream gradient."""
    inputs = [x.detach().requires_grad_() for x in tensors]

    def call() -> list[Tensor]:
        out = function(*inputs)
        upstream = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
        return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]

    return call


def add_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Return what the passes with a residual stream make, forward and backward."""
    total, y, mean, rstd = norm_passes.add_and_normalise(x, branch, weight, bias, 1e-5)
    return [total, y, mean, rstd, *norm_passes.normalise_backward_add(y, total, mean, rstd, weight, branch)]
