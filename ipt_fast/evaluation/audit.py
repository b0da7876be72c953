"""Whether a network's activations stay within float16: the largest |x| that goes into and comes out of every layer.

float16 ends at 65,504 (bfloat16 and float32 at 3.4e38). A value beyond becomes inf, then nan, and an image black.
The network runs in float32 by plain operators, which show what each GEMM, convolution and norm takes and gives.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ipt_fast.inference.export import plain_operators
from ipt_fast.model import IPT
from ipt_fast.model.config import IPTConfig
from ipt_fast.ops import degrade
from ipt_fast.tasks import get_task

LIMIT = torch.finfo(torch.float16).max
MARGIN = 4.0  # photos and noise that were not tried may go further
COLUMNS = ("layer", "input", "weight", "output", "share of 65,504")
NUMERIC = COLUMNS[1:]

_aten = torch.ops.aten
# Where an operator has its inputs; of ``weight`` a view of the parameter that names the layer.
_WEIGHTED = {
    _aten.mm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.convolution.default: (0, 1),
    _aten.native_layer_norm.default: (0, 2),
}


@dataclass
class LayerPeak:
    """The largest absolute values that one layer met: of what it took, of its weight, and of what it gave."""

    layer: str
    input: float = 0.0
    weight: float = 0.0
    output: float = 0.0

    @property
    def peak(self) -> float:
        """Return the largest of the three; nan where one is."""
        return torch.tensor([self.input, self.weight, self.output]).max().item()

    def row(self) -> tuple[str, ...]:
        """Return the cells under ``COLUMNS``."""
        return (self.layer, f"{self.input:,.1f}", f"{self.weight:.3g}", f"{self.output:,.1f}", self.share())

    def share(self) -> str:
        """Say how much of float16's range the peak takes."""
        return f"{self.peak / LIMIT:.2%}" if self.peak <= LIMIT else f"{self.peak / LIMIT:,.1f} times"


@dataclass(frozen=True)
class Audit:
    """The layers, heads to tails, over ``windows`` windows of every task."""

    layers: Sequence[LayerPeak]
    windows: int

    @property
    def worst(self) -> LayerPeak:
        """Return the layer with the largest value; one with a nan comes before all others."""
        return max(self.layers, key=lambda layer: float("inf") if layer.peak != layer.peak else layer.peak)

    @property
    def safe(self) -> bool:
        """Return whether every value times ``MARGIN`` is within float16."""
        return all(layer.peak * MARGIN <= LIMIT for layer in self.layers)

    def verdict(self) -> str:
        """Say in a sentence whether float16 is safe, and by which measure."""
        worst = self.worst
        of = " of" if worst.peak <= LIMIT else ""
        found = f"largest |x| {worst.peak:,.1f} in {worst.layer}, {worst.share()}{of} float16's {LIMIT:,.0f}"
        if self.safe:
            return f"float16 is safe: {found}; up to {1 / MARGIN:.0%} counts as safe"
        if worst.peak <= LIMIT:
            return f"float16 is not safe: {found}, and beyond {1 / MARGIN:.0%} another photo may overflow; use bf16"
        return f"float16 is not safe: {found}; it overflows; use bf16 or fp32"

    def note(self) -> dict[str, Any]:
        """Return what is kept beside the weights of a file."""
        worst = self.worst
        peak = worst.peak if worst.peak < float("inf") else str(worst.peak)  # JSON has neither inf nor nan
        return {"safe": self.safe, "peak": peak, "layer": worst.layer, "margin": MARGIN, "windows": self.windows}


@dataclass
class _Recorder(TorchDispatchMode):
    """Sees every operator of a forward pass and keeps the peaks of those that count."""

    names: Mapping[int, str]  # address of a parameter -> the layer that it belongs to
    peaks: dict[str, LayerPeak] = field(default_factory=dict)
    layer: str = ""  # of the last GEMM with a weight: an attention's products follow its projection
    probabilities: bool = False  # a softmax came since

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in _WEIGHTED:
            x, weight = (args[i] for i in _WEIGHTED[func])
            self.layer = self.names[weight.untyped_storage().data_ptr()]
            self._keep(self.layer, input=x, weight=weight, output=result[0] if isinstance(result, tuple) else result)
        elif func is _aten._softmax.default:
            self.probabilities = True
        elif func is _aten.bmm.default:
            name = self.layer.removesuffix(".in_proj") + (".attention" if self.probabilities else ".scores")
            self._keep(name, input=args[0])
            self._keep(name, input=args[1])
            if self.probabilities:  # the scores themselves are float32 in every kernel
                self._keep(name, output=result)
            self.probabilities = False
        return result

    def _keep(self, name: str, **tensors: Tensor) -> None:
        layer = self.peaks.setdefault(name, LayerPeak(name))
        for which, x in tensors.items():
            # torch's max keeps a nan, Python's may not
            setattr(layer, which, torch.stack([x.abs().amax(), x.new_tensor(getattr(layer, which))]).max().item())


@torch.no_grad()
def audit(model: IPT, inputs: Mapping[str, Tensor]) -> Audit:
    """Run windows through a network and return the largest values that every layer meets.

    Args:
        model: in float32.
        inputs: task -> degraded windows [B, 3, S, S], float32, pixels 0..255, as ``audit_windows`` makes them.

    Raises:
        ValueError: weights in another dtype, which would hide what float32 shows.
    """
    if any(p.dtype != torch.float32 for p in model.parameters()):
        raise ValueError("audit: needs a network in float32; use model.float()")
    names = {
        p.untyped_storage().data_ptr(): name.removesuffix(".weight").removesuffix("_weight")
        for name, p in model.named_parameters()
        if name.endswith("weight")
    }
    recorder = _Recorder(names)
    for task, x in inputs.items():
        for window in x.to(next(model.parameters()).device).split(8):
            with plain_operators(), recorder:
                model(window, task)
    # Of the later tasks, heads come after the first task's tail.
    layers = sorted(recorder.peaks.values(), key=lambda layer: ("head", "body", "tail").index(layer.layer[:4]))
    return Audit(layers, max(len(x) for x in inputs.values()))


def audit_windows(config: IPTConfig, photos: Sequence[Tensor], count: int, seed: int = 0) -> dict[str, Tensor]:
    """Cut ``count`` windows for every task of a network out of photos, at random places, and degrade them.

    Args:
        photos: uint8 [3, H, W]. Those that are smaller than a task's crop are left out for that task.

    Raises:
        ValueError: all photos are too small for a task.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for task in map(get_task, config.tasks):
        side = config.patch_size * task.scale
        large = [photo for photo in photos if min(photo.shape[1:]) >= side]
        if not large:
            raise ValueError(f"{task.name} needs a photo of at least {side}x{side} pixels, and there is none")
        crops = []
        for i in range(count):
            photo = large[i % len(large)]
            top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in photo.shape[1:])
            crops.append(photo[:, top : top + side, left : left + side])
        inputs[task.name] = degrade(torch.stack(crops), task, seeds=torch.arange(seed, seed + count))[0]
    return inputs


def draw_audit(result: Audit, path: Path, title: str) -> Path:
    """Draw every layer's largest input and output in the order of the network, on a logarithmic scale."""
    from matplotlib.figure import Figure

    layers = result.layers
    figure = Figure(figsize=(11, 5), layout="constrained")
    axis = figure.subplots()
    finite = [v for layer in layers for v in (layer.input, layer.output) if 0 < v < float("inf")]
    top = 4 * max(LIMIT, *finite)
    for which, marker, colour in (("input", "o", "#4477aa"), ("output", "D", "#ccbb44")):
        values = [getattr(layer, which) for layer in layers]
        shown = [min(v, top) if v == v else top for v in values]  # inf and nan at the upper edge
        axis.plot(range(len(layers)), shown, marker, color=colour, markersize=3.5, label=f"largest |{which}|")
        over = [i for i, v in enumerate(values) if not v <= LIMIT]
        axis.plot(over, [shown[i] for i in over], marker, color="#cc3311", markersize=6)
    axis.set_yscale("log")
    axis.set_ylim(min(finite) / 2, top * 1.5)
    axis.axhline(LIMIT, color="#cc3311", linewidth=1)
    axis.text(0, LIMIT, "65,504: float16 ends", color="#cc3311", ha="left", va="bottom", fontsize=8)
    axis.axhline(LIMIT / MARGIN, color="#cc3311", linewidth=1, linestyle=":")
    axis.text(0, LIMIT / MARGIN, f"1/{MARGIN:g} of it: safe below", color="#cc3311", ha="left", va="top",
              fontsize=8)  # fmt: skip
    _mark_parts(axis, [layer.layer for layer in layers])
    axis.set_xlim(-1, len(layers))
    axis.set_ylabel("largest |x|")
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, ncols=2, frameon=False)  # outside of the points
    axis.set_title(f"{title}, {result.windows} windows a task\n{result.verdict()}", fontsize=10, loc="left")
    figure.savefig(path, dpi=110)
    return path


def _mark_parts(axis: Any, names: Sequence[str]) -> None:
    """Mark where heads, each encoder and decoder layer, and tails begin."""
    parts = [re.sub(r"^body\.(encoder|decoder)\.layers\.(\d+)\..*", r"\1 \2", name) for name in names]
    parts = [part if " " in part else part.partition(".")[0] for part in parts]
    starts = [i for i, part in enumerate(parts) if part != "body" and (i == 0 or part != parts[i - 1])]
    axis.set_xticks([i - 0.5 for i in starts], [parts[i] for i in starts], rotation=90, ha="left", fontsize=7)
    axis.grid(axis="x", alpha=0.3)
