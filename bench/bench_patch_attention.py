"""Is patch_attention faster than the attention of PyTorch, its compiler, xFormers, FlashAttention at IPT's shapes?"""

import contextlib
import functools
import importlib
import importlib.util
import os
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from bench.case import DIRECTIONS, Work, outcome
from ipt_fast.ops import patch_attention
from ipt_fast.ops.patch_attention import backend_status, patch_attention_reference

D, H = 576, 12
# (B, N), those that tell most first: where time runs out, the last are not measured. N=1024: the deblurring network.
SHAPES = {
    "cuda": ((64, 256), (8, 256), (1, 256), (8, 1024), (256, 256), (16, 1024), (1, 1024)),
    "cpu": ((8, 256), (1, 1024)),
}
DTYPES = {"cuda": ("bfloat16", "float16"), "cpu": ("float32", "bfloat16")}
# One backend of scaled_dot_product_attention at a time; PyTorch raises where that one cannot serve.
TORCH = {
    "torch math": SDPBackend.MATH,
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch cudnn": SDPBackend.CUDNN_ATTENTION,
}
# Packages of others: the module that has ``flash_attn_func``.
PACKAGES = {"flash-attention 3": "flash_attn_interface", "flash-attention 4": "flash_attn.cute"}
# "eager" first, which the others are compared with; what has to be compiled last, as that takes longest.
OURS = ("triton", "cuda", "cpu", "sdpa")
CONTENDERS = ("eager", *OURS, "torch cudnn", "torch efficient", "torch flash", *PACKAGES, "xformers", "torch math")
COMPILED = ("flex", "compile")
# Of the difference from the eager result in float32, in relative norm.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def cases(kind, small):
    """Return (dtype, B, N, direction, embeds, contender), those that tell most first."""
    shapes = SHAPES[kind][:1] if small else SHAPES[kind]
    embeds = {shapes[0]: (True,) if small else (True, False)}  # the encoder adds none
    return [
        (dtype, *shape, direction, added, contender)
        for contenders in (CONTENDERS, COMPILED)
        for shape in shapes
        for dtype in DTYPES[kind]
        for added in embeds.get(shape, (True,))
        for direction in DIRECTIONS
        for contender in contenders
    ]


def pytest_generate_tests(metafunc):
    listed = cases(metafunc.config.getoption("--device"), metafunc.config.getoption("--small"))
    names = [f"{c}-{d}-B={B} N={N}-{t}{'' if e else '-no embeddings'}" for t, B, N, d, e, c in listed]
    metafunc.parametrize("dtype, B, N, direction, embeds, contender", listed, ids=names)


def eager(q, k, v, q_embed=None, k_embed=None):
    return patch_attention_reference(q, k, v, H, q_embed, k_embed, (D // H) ** -0.5)


def added(q, k, v, q_embed=None, k_embed=None):
    """Add the embeddings, which only ours does inside: q, k, v [B, N, H, d]."""
    q, k = (q, k) if q_embed is None else (q + q_embed, k + k_embed)
    return [x.unflatten(-1, (H, -1)) for x in (q, k, v)]


def scaled_dot_product(*tensors, attend=F.scaled_dot_product_attention):
    q, k, v = (x.transpose(1, 2) for x in added(*tensors))  # [B, H, N, d]
    return attend(q, k, v).transpose(1, 2).flatten(2)


def make_function(contender):
    """q, k, v [B, N, D] and two embeddings [N, D] or none -> [B, N, D]."""
    if contender == "eager":
        return eager
    if contender == "compile":
        torch.compiler.reset()
        return torch.compile(eager, fullgraph=True, dynamic=False)
    if contender == "flex":
        torch.compiler.reset()
        return functools.partial(scaled_dot_product, attend=torch.compile(flex_attention, dynamic=False))
    if contender in TORCH:
        return scaled_dot_product
    if contender in PACKAGES:
        return functools.partial(flash_attention, importlib.import_module(PACKAGES[contender]).flash_attn_func)
    return lambda q, k, v, *embeds: patch_attention(
        q, k, v, num_heads=H, **dict(zip(("q_embed", "k_embed"), embeds, strict=False)), impl=contender
    )


def flash_attention(function, *tensors):
    found = function(*added(*tensors))
    return (found[0] if isinstance(found, tuple) else found).flatten(2)


def skip_where_it_cannot_run(device, contender, dtype, B, N):
    if reason := backend_status(device, dtype).get(contender):
        pytest.skip(f"{contender} {reason}")
    if contender in PACKAGES and importlib.util.find_spec(PACKAGES[contender].split(".")[0]) is None:
        pytest.skip(f"{contender} needs the package {PACKAGES[contender]}, which is not installed")
    if device.type == "cuda":
        if contender == "sdpa":
            pytest.skip('impl="sdpa" is on a GPU the one of the "torch" contenders that PyTorch chooses')
    elif contender == "triton":
        pytest.skip("triton: its interpreter shows numbers, not speed")
    elif contender in PACKAGES or contender == "flex":
        pytest.skip(f"{contender} is for GPUs")
    elif contender == "compile":
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            pytest.skip("compile needs a C++ compiler on a CPU")
        if SHAPES["cpu"][0] != (B, N):
            pytest.skip("compile: on a CPU for one shape, as compiling takes longer than measuring")


def check(call, inputs, upstream, dtype, contender):
    """Check that the contender computes what eager does; one of PyTorch that cannot is skipped in PyTorch's words."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = call()
        except Exception as error:  # each library refuses in a way of its own
            if contender not in (*TORCH, *PACKAGES, "flex"):
                raise
            lines = [str(warning.message).partition(" (Triggered")[0] for warning in said] or [str(error)]
            pytest.skip(f"{contender} on {inputs[0].device.type}: {' '.join(dict.fromkeys(lines))}")
    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected = outcome(eager, exact, None if upstream is None else upstream.float())
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == inputs[0].dtype
        assert (a.float() - b).norm() <= TOLERANCE[dtype] * b.norm()


def least(B, N, size, direction, embeds):
    """Each tensor once: q, k, v, out, the embeddings; backward also the gradients and, twice, one float a row."""
    tensor, embed, rows = size * B * N * D, size * N * D * embeds, 4 * B * H * N
    flops, moved = 4 * B * N * N * D, 4 * tensor + 2 * embed
    if direction == "forward":
        return Work(flops, moved)
    return Work(3.5 * flops, moved + 8 * tensor + 4 * embed + 2 * rows)


def bench_attention(measure, device, dtype, B, N, direction, embeds, contender):
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    skip_where_it_cannot_run(device, contender, kind["dtype"], B, N)
    # As the network gives them: views of packed projections.
    packed, E = torch.randn(B, N, 3 * D, **kind), torch.randn(N, 2 * D, **kind)
    inputs = [x.requires_grad_() for x in (*packed.chunk(3, dim=-1), *(E.chunk(2, dim=-1) if embeds else ()))]
    upstream = torch.randn(B, N, D, **kind) if direction == "forward+backward" else None
    function = make_function(contender)
    call = functools.partial(outcome, function, inputs, upstream)
    with sdpa_kernel(TORCH[contender]) if contender in TORCH else contextlib.nullcontext():
        check(call, inputs, upstream, dtype, contender)
        work = least(B, N, packed.element_size(), direction, embeds)
        shape = f"B={B} N={N} D={D}{'' if embeds else ', no embeddings'}"
        measure(call, "patch_attention", contender, shape, dtype, work, direction=direction)
