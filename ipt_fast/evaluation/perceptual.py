"""LPIPS (Zhang et al., CVPR 2018) and DISTS (Ding et al., TPAMI 2020): distances between features of photos.

The packages that have them need torchvision and download weights unasked, so the networks are built here. The weights
of the backbone are a file that the user names, as PyTorch's model zoo gives it: ``alexnet-owt-7be5be79.pth`` or
``vgg16-397923af.pth``. The few thousand numbers that were fitted to people's judgement come with torchmetrics (extra:
metrics).
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_fast.arguments import checked
from ipt_fast.checkpoint.errors import CheckpointError
from ipt_fast.checkpoint.read import check_weights, read_torch_file
from ipt_fast.evaluation.metrics import as_scored

MIN_SIDE = {"lpips": 31, "dists": 16}  # AlexNet, the stricter backbone of LPIPS, and VGG-16 have no pixel left of less
_ALEXNET = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
_VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return AlexNet's convolutions, named as in the released file, and behind which layers features are taken."""
    layers: list[nn.Module] = []
    for stage, sizes in enumerate(_ALEXNET):
        layers += [nn.MaxPool2d(3, 2)] * (stage in (1, 2)) + [nn.Conv2d(*sizes), nn.ReLU()]
    return nn.Sequential(*layers), (1, 4, 7, 9, 11)


def vgg16() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return the same of VGG-16."""
    layers: list[nn.Module] = []
    taps, channels = [], 3
    for stage, widths in enumerate(_VGG):
        layers += [nn.MaxPool2d(2)] * (stage > 0)
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        taps.append(len(layers) - 1)
    return nn.Sequential(*layers), tuple(taps)


class L2Pool(nn.Module):
    """Halve a side: the root of the mean of squares under a Hann window, without aliasing (Eq. 2 of DISTS)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, ceil(H/2), ceil(W/2)]."""
        hann = torch.as_tensor(np.hanning(5)[1:-1], dtype=x.dtype, device=x.device)
        window = torch.outer(hann, hann) / hann.sum() ** 2
        C = x.shape[1]
        return (F.conv2d(x.square(), window.expand(C, 1, 3, 3), stride=2, padding=1, groups=C) + 1e-12).sqrt()


class Distance(nn.Module):
    """What both have in common: the features of images, 0..255, normalised as the backbone was trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Sequential, taps: tuple[int, ...], mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.features, self.taps = features, taps
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the features behind each tap, x [B, 3, H, W] in the range that ``mean`` is of."""
        found, x = [], (x - self.mean) / self.std
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                found.append(x)
        return found

    def forward(self, output: Tensor, target: Tensor, border: int = 0) -> Tensor:
        """Return the distance of each image, float32 [B], 0 for equal ones. Arguments and errors as ``psnr_y``."""
        name = type(self).__name__.lower()
        pair = as_scored(name, output, target, border)
        if min(pair[0].shape[-2:]) < MIN_SIDE[name]:
            raise ValueError(
                f"{name}: needs at least {MIN_SIDE[name]} pixels a side inside the border, "
                f"got {list(pair[0].shape[-2:])}"
            )
        with torch.no_grad():
            return self.distance(*((x.float() / 255).to(self.mean.device) for x in pair))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each image, [B], of float images [B, 3, H, W], 0..1."""
        raise NotImplementedError


class LPIPS(Distance):
    """Version 0.1: squared differences of features of unit length, weighted by channel, mean over pixels."""

    def __init__(self, features: nn.Sequential, taps: tuple[int, ...], weights: list[Tensor]) -> None:
        super().__init__(features, taps, [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
        self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in weights)  # each [1, C, 1, 1]

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each image, [B], of float images [B, 3, H, W], 0..1."""
        total = x.new_zeros(len(x))
        for weight, a, b in zip(self.weights, self.stages(2 * x - 1), self.stages(2 * y - 1), strict=True):
            a, b = (f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (a, b))
            total += F.conv2d((a - b).square(), weight).mean((1, 2, 3))
        return total


class DISTS(Distance):
    """One minus the weighted likeness of the channels' means (texture) and structure; RGB is the first stage."""

    def __init__(self, features: nn.Sequential, taps: tuple[int, ...], alpha: Tensor, beta: Tensor) -> None:
        pooled = [L2Pool() if isinstance(layer, nn.MaxPool2d) else layer for layer in features]
        super().__init__(nn.Sequential(*pooled), taps, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.alpha, self.beta = (nn.Parameter(w.flatten(), requires_grad=False) for w in (alpha, beta))  # [1475]

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each image, [B], of float images [B, 3, H, W], 0..1."""
        texture, structure = [], []
        for a, b in zip([x, *self.stages(x)], [y, *self.stages(y)], strict=True):
            mean_a, mean_b = (f.mean((2, 3), keepdim=True) for f in (a, b))  # [B, C, 1, 1]
            a, b = a - mean_a, b - mean_b
            var_a, var_b, cov = (product.mean((2, 3)) for product in (a * a, b * b, a * b))  # [B, C]
            mean_a, mean_b = mean_a.flatten(1), mean_b.flatten(1)
            texture.append((2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6))
            structure.append((2 * cov + 1e-6) / (var_a + var_b + 1e-6))
        alpha, beta = self.alpha.double(), self.beta.double()  # the sum cancels against 1
        likeness = torch.cat(texture, 1).double() @ alpha + torch.cat(structure, 1).double() @ beta
        return (1 - likeness / (alpha.sum() + beta.sum())).float()


def _fill(features: nn.Sequential, path: Path, weights: dict[str, Tensor]) -> nn.Sequential:
    """Load ``features.0.weight`` and the like of a released file; its classifier is left out."""
    given = {key.removeprefix("features."): v for key, v in weights.items() if key.startswith("features.")}
    check_weights(path, given, features.state_dict(), "does not fit the network that its first convolution is of")
    features.load_state_dict(given, assign=True)  # they are on the meta device, so that no weight was drawn for them
    return features


def _read_backbone(path: Path, name: str, sides: dict[int, str]) -> tuple[dict[str, Tensor], int]:
    """Return the weights of a file and the side of its first convolution, one of ``sides``."""
    weights = read_torch_file(path)
    first = weights.get("features.0.weight") if isinstance(weights, dict) else None
    side = first.shape[-1] if isinstance(first, Tensor) else 0
    if side not in sides:
        raise CheckpointError(f"{path}: no backbone of {name}; needs the weights of {' or '.join(sides.values())}")
    return weights, side


def _fitted(name: str, file: str) -> dict[str, Tensor]:
    """Return what torchmetrics carries for a distance, without importing it."""
    found = find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise CheckpointError(f"{name}: its fitted weights come with torchmetrics; pip install 'ipt-fast[metrics]'")
    return read_torch_file(Path(found.origin).parent / "functional" / "image" / file)


@checked
def load_lpips(path: Path) -> LPIPS:
    """Return LPIPS 0.1 on the backbone of a file, AlexNet's (what papers report) or VGG-16's.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: neither network's weights, or torchmetrics is not installed.
    """
    zoo = {11: "alexnet-owt-7be5be79.pth", 3: "vgg16-397923af.pth"}  # by the side of the first convolution
    weights, side = _read_backbone(path, "lpips", zoo)
    with torch.device("meta"):
        features, taps = alexnet() if side == 11 else vgg16()
    fitted = _fitted("lpips", f"lpips_models/{'alex' if side == 11 else 'vgg'}.pth")
    return LPIPS(_fill(features, path, weights), taps, [fitted[f"lin{k}.model.1.weight"] for k in range(5)])


@checked
def load_dists(path: Path) -> DISTS:
    """Return DISTS on the backbone of a file, VGG-16's; at the images' own size, which its authors' script makes 256.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not that network's weights, or torchmetrics is not installed.
    """
    weights, _ = _read_backbone(path, "dists", {3: "vgg16-397923af.pth"})
    with torch.device("meta"):
        features, taps = vgg16()
    fitted = _fitted("dists", "dists_models/weights.pt")
    return DISTS(_fill(features, path, weights), taps, fitted["alpha"], fitted["beta"])
