"""The seven ops on random shapes, dtypes, layouts, scales and devices, and with one bad argument."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipt_fast import ops
from ipt_fast.degradations.bicubic import bicubic_down
from ipt_fast.degradations.noise import add_noise
from ipt_fast.degradations.rain import add_rain, rain_layers
from ipt_fast.ops.ffn import ffn_reference
from ipt_fast.ops.layernorm_linear import layernorm_linear_reference
from ipt_fast.ops.patch_attention import patch_attention_reference
from ipt_fast.ops.patch_contrastive_loss import patch_contrastive_loss_reference
from ipt_fast.ops.pixelshuffle_tail import pixelshuffle_tail_reference
from ipt_fast.ops.row_contrastive_loss import row_contrastive_loss_reference
from ipt_fast.tasks import get_task
from tests.api.wrong import wrong_values
from tests.fuzz.verdict import AGREED, DTYPES, FaultError, close, differentiable, laid_out, refused

Drawn = tuple[Callable[..., Tensor], Callable[..., Tensor], dict[str, Any]]  # the op, the plain way, arguments by name


class Draw:
    """Random numbers of one call: ``one`` of a choice, tensors in random layouts of one dtype and device."""

    def __init__(self, rng: random.Random):
        self.rng, self.one = rng, rng.choice
        self.dtype = rng.choice(DTYPES)
        self.device = "meta" if rng.random() < 0.05 else "cpu"

    def tensor(self, *shape: int, scale: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(self.rng.getrandbits(40))
        x = torch.randn(shape, generator=generator).to(self.dtype) * scale
        if x.numel() and self.rng.random() < 0.02:
            x.view(-1)[self.rng.randrange(x.numel())] = self.one([torch.nan, torch.inf])
        return laid_out(x, self.rng).to(self.device)

    def maybe(self, *shape: int) -> Tensor | None:
        return self.tensor(*shape) if self.rng.random() < 0.6 else None

    def number(self, most: int, least: int = 1) -> int:
        return self.rng.randint(least, most)


def patch_attention(draw: Draw) -> Drawn:
    H, d = draw.number(4), draw.number(17)
    B, N, M, D = draw.number(3, 0), draw.number(20), draw.number(20), H * d
    scale = draw.one([None, None, 0.3, 0, -0.5, 1])
    if draw.rng.random() < 0.3:
        M, packed = N, draw.tensor(B, N, 3 * D)
        q, k, v = packed.chunk(3, -1)
    else:
        q, k, v = draw.tensor(B, N, D), draw.tensor(B, M, D), draw.tensor(B, M, D)
    inputs = {"q": q, "k": k, "v": v, "q_embed": draw.maybe(N, D), "k_embed": draw.maybe(M, D)}

    def plain(q, k, v, q_embed, k_embed, num_heads, scale, impl):
        scale = d**-0.5 if scale is None else float(scale)
        return patch_attention_reference(q, k, v, num_heads, q_embed, k_embed, scale)

    impl = draw.one([None, None, "eager", "cpu", "sdpa"])
    return ops.patch_attention, plain, {**inputs, "num_heads": H, "scale": scale, "impl": impl}


def _rows(draw: Draw) -> list[int]:
    return [draw.number(6, 0) for _ in range(draw.number(3, 0))]


def layernorm_linear(draw: Draw) -> Drawn:
    D, D_out = draw.number(20, 2), draw.number(20)
    names = {"norm_weight": (D,), "norm_bias": (D,), "weight": (D_out, D)}
    inputs: dict[str, Any] = {"x": draw.tensor(*_rows(draw), D), **{n: draw.tensor(*s) for n, s in names.items()}}
    inputs |= {"bias": draw.maybe(D_out), "eps": draw.one([1e-5, 1e-3, 1]), "impl": draw.one([None, "fused", "eager"])}

    def plain(x, norm_weight, norm_bias, weight, bias, eps, impl):
        return layernorm_linear_reference(x, norm_weight, norm_bias, weight, bias, eps)

    return ops.layernorm_linear, plain, inputs


def ffn(draw: Draw) -> Drawn:
    D, hidden, D_out = draw.number(16, 2), draw.number(20), draw.number(16)
    normed = draw.rng.random() < 0.7
    inputs: dict[str, Any] = {"x": draw.tensor(*_rows(draw), D)}
    inputs |= {name: draw.tensor(D) if normed else None for name in ("norm_weight", "norm_bias")}
    inputs |= {"weight1": draw.tensor(hidden, D), "bias1": draw.maybe(hidden)}
    inputs |= {"weight2": draw.tensor(D_out, hidden), "bias2": draw.maybe(D_out), "eps": draw.one([1e-5, 1e-3])}
    inputs |= {"activation": draw.one(["relu", "gelu"]), "recompute": draw.one([True, False])}

    def plain(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation, recompute, impl):
        return ffn_reference(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, activation)

    return ops.ffn, plain, {**inputs, "impl": draw.one([None, "fused", "eager"])}


def patch_contrastive_loss(draw: Draw) -> Drawn:
    mode, reduction = draw.one(["paper", "supcon"]), draw.one(["mean", "sum", "none"])
    temperature = 0.07 if mode == "paper" else draw.one([0.07, 0.1, 0.5, 1, 3.0])
    features = draw.tensor(draw.number(5, 2), draw.number(9, 1 if mode == "paper" else 2), draw.number(20))
    impl = draw.one([None, None, "eager"])

    def plain(features, mode, temperature, reduction, impl):
        wide = features if features.dtype in (torch.float32, torch.float64) else features.float()
        values = patch_contrastive_loss_reference(wide, mode, float(temperature))
        return values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()

    options = {"mode": mode, "temperature": temperature, "reduction": reduction, "impl": impl}
    return ops.patch_contrastive_loss, plain, {"features": features, **options}


def pixelshuffle_tail(draw: Draw) -> Drawn:
    scales = draw.one([(2,), (3,), (2, 2), (1,), (4,), ()])
    channels, kernels = [draw.number(6) for _ in range(len(scales) + 2)], [draw.one([1, 3, 3, 5]) for _ in (*scales, 0)]
    inputs: dict[str, Any] = {"x": draw.tensor(draw.number(2, 0), channels[0], draw.number(9), draw.number(9))}
    biased = [draw.rng.random() < 0.7 for _ in kernels]
    for i, (r, k) in enumerate(zip((*scales, 1), kernels, strict=True)):
        inputs[f"w{i}"] = draw.tensor(channels[i + 1] * r * r, channels[i], k, k, scale=0.3)
        inputs |= {f"b{i}": draw.tensor(channels[i + 1] * r * r)} if biased[i] else {}

    def convs(tensors):
        return [(tensors[f"w{i}"], tensors.get(f"b{i}")) for i in range(len(kernels))]

    def call(x, scales, impl, **tensors):
        return ops.pixelshuffle_tail(x, convs(tensors), scales, impl=impl)

    def plain(x, scales, impl, **tensors):
        return pixelshuffle_tail_reference(x, convs(tensors), scales)

    return call, plain, {**inputs, "scales": scales, "impl": draw.one([None, None, "eager", "collapsed"])}


def row_contrastive_loss(draw: Draw) -> Drawn:
    mode, reduction = draw.one(["softmax", "sigmoid"]), draw.one(["mean", "sum", "none"])
    B, D = draw.number(9), draw.number(20)
    inputs: dict[str, Any] = {"x": draw.tensor(B, D), "y": draw.tensor(B, D)}
    inputs |= {"scale": draw.one([0.5, 3, draw.tensor(), draw.tensor(1)])}
    inputs |= {"bias": draw.one([None, -1, draw.tensor()]) if mode == "sigmoid" else None}

    def plain(x, y, scale, bias, mode, reduction, impl):
        numbers = [t if isinstance(t, Tensor) else float(t or 0) for t in (scale, bias)]
        wide = [t.float() if isinstance(t, Tensor) and t.dtype.itemsize < 4 else t for t in (x, y, *numbers)]
        values = row_contrastive_loss_reference(*wide, mode)
        return values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()

    options = {"mode": mode, "reduction": reduction, "impl": draw.one([None, "gemm", "eager"])}
    return ops.row_contrastive_loss, plain, {**inputs, **options}


def degrade(draw: Draw) -> str:
    """Compare with the reference bit for bit, the super-resolution and the seeds' part of a batch as well."""
    task = get_task(draw.one(["sr2", "sr3", "sr4", "derain", "denoise30", "denoise12.5"]))
    B, margin = draw.number(3), draw.one([0, 0, 1, 2]) if task.kind == "sr" else 0
    sides = [task.scale * (2 * margin + draw.number(9)) for _ in range(2)]
    generator = torch.Generator().manual_seed(draw.rng.getrandbits(40))
    clean = torch.randint(0, 256, (B, 3, *sides), dtype=torch.uint8, generator=generator)
    clean = clean.contiguous(memory_format=torch.channels_last) if draw.rng.random() < 0.3 else clean
    seeds = torch.randint(-(2**63), 2**63 - 1, (B,), generator=generator)
    found = ops.degrade(clean, task.name, seeds=seeds, margin=margin, impl=draw.one([None, "eager"]))
    edge = margin * task.scale
    target = clean[..., edge : sides[0] - edge, edge : sides[1] - edge].float()
    if task.kind == "sr":
        low = bicubic_down(clean, task.scale)
        expected = low[..., margin : low.shape[-2] - margin, margin : low.shape[-1] - margin]
    elif task.kind == "derain":
        expected = add_rain(clean, rain_layers(seeds, *sides))
    else:
        expected = add_noise(clean, seeds, task.sigma)
    for name, a, b in zip(("input", "target"), found, (expected, target), strict=True):
        close(f"degrade {name}", a, b.double(), b, torch.float32)
    alone = ops.degrade(clean[-1:], task, seeds=seeds[-1:], margin=margin)[0]
    if not torch.equal(alone[0], found[0][-1]):
        raise FaultError(f"degrade {task.name}: an image's result depends on its batch")
    return AGREED


OPS = (patch_attention, layernorm_linear, ffn, patch_contrastive_loss, row_contrastive_loss, pixelshuffle_tail)


def random_op(rng: random.Random) -> str:
    """Make one call; one in six has a bad argument."""
    if rng.random() < 1 / 8:
        return degrade(Draw(rng))
    draw = Draw(rng)
    op, bad = rng.choice(OPS), rng.random() < 1 / 6
    call, plain, inputs = op(draw)
    if not bad:
        try:
            return differentiable(op.__name__, call, plain, inputs, rng)
        except FaultError:
            raise
        except Exception as error:
            return refused(error, ["impl", "eager", "cpu", "fused", "sdpa"])
    name = rng.choice([name for name in inputs if name[1:] not in ("0", "1", "2")])
    value = rng.choice(wrong_values(inputs[name]))
    inputs[name] = value
    try:
        found = call(**inputs)
    except Exception as error:
        return refused(error, [name], [value])
    try:
        rough = plain(**{n: x.resolve_neg() if isinstance(x, Tensor) else x for n, x in inputs.items()})
        exact = plain(**{n: x.double() if isinstance(x, Tensor) else x for n, x in inputs.items()})
    except Exception as error:
        raise FaultError(f"{op.__name__} takes {name}={str(value)[:60]!r}, which its reference does not") from error
    close(f"{op.__name__} with another {name}", found, exact, rough, draw.dtype)
    return AGREED
