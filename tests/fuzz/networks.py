"""``accelerate`` on random networks of convolutions, PixelShuffles, shared modules, residuals and attention."""

import copy
import random

import torch
from torch import Tensor, nn

from ipt_fast import accelerate
from tests.fuzz.verdict import AGREED, FaultError, close, refused

_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Identity, lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.1))


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attention(nn.Module):
    """Attention of the pixels to each other, with a learned place added to queries and keys as DETR does."""

    def __init__(self, channels: int, heads: int, batch_first: bool, weights: bool, bias: bool):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=batch_first, bias=bias)
        self.place = nn.Parameter(torch.randn(channels) * 0.1)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        order = (0, 2, 1) if self.attention.batch_first else (2, 0, 1)
        tokens = x.flatten(2).permute(*order)
        q = k = tokens + self.place
        out = self.attention(q, k, tokens, need_weights=self.weights)[0]
        back = (0, 2, 1) if self.attention.batch_first else (1, 2, 0)
        return x + out.permute(*back).reshape(B, C, H, W)


class Parts(nn.Module):
    """A tail in two attributes, called in one line or in two, with the result seen twice or a residual around it."""

    def __init__(self, upsample: nn.Module, conv_last: nn.Module, way: str):
        super().__init__()
        self.upsample, self.conv_last, self.way = upsample, conv_last, way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "one line":
            return self.conv_last(self.upsample(x))
        up = self.upsample(x)
        if self.way == "seen twice":
            return self.conv_last(up) + up.mean()
        if self.way == "activated":
            up = torch.relu(up)
        x = self.conv_last(up)
        return x


def _conv(rng: random.Random, inside: int, out: int) -> nn.Conv2d:
    k = rng.choice([1, 3, 3, 3, 5])
    odd = rng.random() < 0.1
    mode = rng.choice(["reflect", "zeros"]) if odd and k > 1 else "zeros"
    return nn.Conv2d(inside, out, k, padding=k // 2, bias=rng.random() < 0.8, padding_mode=mode)


def _body(rng: random.Random, channels: int, shared: list[nn.Module]) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for _ in range(rng.randrange(4)):
        kind = rng.choice(["conv", "activation", "residual", "attention", "shared", "norm"])
        if kind == "conv":
            parts.append(_conv(rng, channels, channels))
        elif kind == "activation":
            parts.append(rng.choice(_ACTIVATIONS)())
        elif kind == "residual":
            inner = nn.Sequential(_conv(rng, channels, channels), nn.ReLU(), _conv(rng, channels, channels))
            parts.append(Residual(inner))
        elif kind == "attention":
            heads = rng.choice([h for h in (1, 2, 3, 4) if channels % h == 0])
            parts.append(Attention(channels, heads, *(rng.random() < 0.5 for _ in range(3))))
        elif kind == "norm":
            parts.append(nn.GroupNorm(1, channels))
        elif shared:
            parts.append(rng.choice(shared))
        shared += parts[-1:]
    return parts


def _tail(rng: random.Random, channels: int, shared: list[nn.Module]) -> nn.Module:
    up: list[nn.Module] = []
    shuffle = nn.PixelShuffle(2) if rng.random() < 0.3 else None
    for r in rng.choice([(2,), (3,), (2, 2), (2,), ()]):
        up += [_conv(rng, channels, channels * r * r), shuffle if shuffle and r == 2 else nn.PixelShuffle(r)]
        if rng.random() < 0.15:
            up.append(rng.choice(_ACTIVATIONS)())
    last = _conv(rng, channels, rng.choice([3, 1, channels]))
    if rng.random() < 0.4:
        return Parts(nn.Sequential(*up), last, rng.choice(["one line", "two lines", "seen twice", "activated"]))
    return nn.Sequential(nn.Sequential(*up), last) if rng.random() < 0.5 else nn.Sequential(*up, last)


def random_network(rng: random.Random) -> str:
    """Accelerate a network, compare output and gradients in train and eval mode, and again after undoing."""
    torch.manual_seed(rng.getrandbits(40))
    channels, shared = rng.choice([2, 4, 6]), []
    parts = [_conv(rng, 3, channels), *_body(rng, channels, shared), _tail(rng, channels, shared)]
    network = nn.Sequential(*parts).train(rng.random() < 0.3)
    if rng.random() < 0.1:
        network[0] = nn.utils.parametrizations.weight_norm(network[0])
    x = torch.randn(rng.randint(0, 2) or 1, 3, rng.randint(1, 7), rng.randint(3, 9))
    if any(isinstance(m, nn.Conv2d) and m.padding_mode == "reflect" for m in network.modules()):
        x = torch.randn(1, 3, 6, 7)
    other, frozen = copy.deepcopy(network), rng.random() < 0.2
    before, kinds = list(other.state_dict()), [type(m) for m in other.modules()]
    try:
        undo = accelerate(other, frozen=frozen)
        if list(other.state_dict()) != before:
            raise FaultError("accelerate changed the state dict")
        _compare("accelerated", network, other, x, gradients=not frozen)
        if not frozen and rng.random() < 0.3:
            with torch.no_grad():
                for p, q in zip(network.parameters(), other.parameters(), strict=True):
                    p.mul_(1.5), q.mul_(1.5)
            _compare("accelerated, weights changed", network, other, x, gradients=False)
        undo()
    except FaultError:
        raise
    except Exception as error:
        return refused(error, ["accelerate", "frozen"])
    if [type(m) for m in other.modules()] != kinds:
        raise FaultError("undo left other classes behind")
    _compare("undone", network, other, x, gradients=False)
    return AGREED


def _compare(what: str, network: nn.Module, other: nn.Module, x: Tensor, gradients: bool) -> None:
    exact = copy.deepcopy(network).double()(x.double())
    with torch.set_grad_enabled(gradients):
        plain, found = network(x), other(x)
    close(f"{what} output", found, exact, plain, torch.float32)
    if not gradients:
        return
    upstream = torch.linspace(-1, 2, plain.numel()).reshape(plain.shape)
    grads = []
    for n, out in ((network, plain), (other, found)):
        try:
            grads.append(torch.autograd.grad(out, list(n.parameters()), upstream, allow_unused=True))
        except RuntimeError:  # an activation in place of what the layer before it keeps: then neither can
            if n is other:
                raise
            return
    for (name, _), a, b in zip(network.named_parameters(), *grads, strict=True):
        if (a is None) != (b is None):
            raise FaultError(f"{what}: {name} has a gradient in one of the two alone")
        if a is not None and (a - b).norm() > 2e-4 * a.norm() + 2e-5 * upstream.norm() * x.numel() ** 0.5:
            raise FaultError(f"{what}: the gradient of {name} is off by {(a - b).norm():.3g} of {a.norm():.3g}")
