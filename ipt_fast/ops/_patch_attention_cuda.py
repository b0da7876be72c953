"""The backend "cuda" of patch_attention: the kernels of ``csrc/``; half precision, d in {32, 48, 64}, any lengths."""

import torch
from torch import Tensor

from ipt_fast.cuda.code import unavailable_reason
from ipt_fast.cuda.driver import Stride, launch
from ipt_fast.cuda.kernels import HEAD_DIMS, Kernel, arch_of, kernel_of
from ipt_fast.ops._patch_attention_cpu import empty_gradients, unpack_gradients
from ipt_fast.ops._registry import assuming, capability_below


def cuda_reason(device: str, dtype: torch.dtype | None, head_dim: int | None) -> str | None:
    """Return why the kernels cannot serve a call, as the end of a sentence, or None; None of an argument: any."""
    if reason := capability_below((7, 0), device):
        return reason
    if dtype not in (None, torch.float16):
        return f"has float16 kernels alone (got {str(dtype).removeprefix('torch.')})"
    if head_dim is not None and head_dim not in HEAD_DIMS:
        return f"needs a head size D / num_heads of {', '.join(map(str, HEAD_DIMS))} (got {head_dim})"
    return None if assuming() else unavailable_reason(_arch(device))


def cuda_forward(q, k, v, q_embed, k_embed, num_heads, scale):
    """Map q [B, N, D], k and v [B, M, D] to out [B, N, D] and lse [B, H, N] float32, the natural logarithm of every
    softmax's denominator.
    """
    q, k, v, q_embed, k_embed = map(_readable, (q, k, v, q_embed, k_embed))
    (B, N, D), M, H = q.shape, k.shape[1], num_heads
    kernel = _kernel("forward", q, H)
    out = torch.empty(B, N, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, N, dtype=torch.float32, device=q.device)
    strides = _strides((q, k, v), (q_embed, k_embed))
    arguments = (q, k, v, q_embed, k_embed, out, lse, H, N, M, *strides, scale)
    launch(kernel, q.device, B * H * -(-N // kernel.rows), arguments)
    return out, lse


def cuda_backward(grad, q, k, v, q_embed, k_embed, out, lse, num_heads, scale):
    """Return the gradients of q, k and v, given that of ``out`` and what the forward returned; packed, as
    ``empty_gradients`` says.
    """
    grad, q, k, v, q_embed, k_embed = map(_readable, (grad, q, k, v, q_embed, k_embed))
    out, lse = out.contiguous(), lse.contiguous()
    (B, N, D), M, H = q.shape, k.shape[1], num_heads
    kernel = _kernel("backward", q, H)
    first, second = empty_gradients(q, k)
    dq, dk, dv = unpack_gradients(first, second, q, k)
    sums = None  # of dq over chunks of keys, where there is more than one
    if kernel.rows < M:
        sums = torch.empty(B * H, -(-N // 32) * 32, D // H, dtype=torch.float32, device=q.device)
    strides = (*_strides((grad, q, k, v), (q_embed, k_embed)), *_strides((dq, dk, dv), ()))
    arguments = (grad, q, k, v, q_embed, k_embed, out, lse, dq, dk, dv, sums, H, N, M, *strides, scale)
    launch(kernel, q.device, B * H, arguments)
    return first, second


def _kernel(direction: str, q: Tensor, num_heads: int) -> Kernel:
    return kernel_of(direction, q.shape[-1] // num_heads, _arch(q.device))


def _arch(device: torch.device | str) -> int:
    return arch_of(torch.cuda.get_device_capability(device))


def _readable(x: Tensor | None) -> Tensor | None:
    """Return x where the kernels can read it: rows dense, 16 bytes at a time; otherwise a copy."""
    if x is None or (x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and not any(s % 8 for s in x.stride()[:-1])):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _strides(images: tuple[Tensor, ...], embeds: tuple[Tensor | None, ...]) -> list[Stride]:
    strides = [Stride(s) for x in images for s in x.stride()[:2]]
    return strides + [Stride(0 if x is None else x.stride(0)) for x in embeds]
