"""The whole network, forward and every gradient, on the device in 16 bits against the plain network in float64.

The plain network (bench/baselines) shares no op with ours. What it misses by in the same 16 bits is the measure of what
ours may miss by.
"""

import json
import os
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import ROOT
from bench.baselines.plain_ipt import plain_copy
from bench.baselines.plain_trainer import contrastive_loss, supervised_loss
from bench.proof.check import Row, Setting, distance, judge, short
from ipt_fast.losses import pretrain_loss
from ipt_fast.model import IPT, IPTConfig

_TASK, _LAM = "sr2", 0.1
_SCALE = 2.0**10  # of the loss, so that no gradient of float16 is lost
_LEAST = 2e-6  # relative, that nobody minds: float32 in another order of sums
_GOLDEN = 2e-5  # of the released network's output in float32


def results(model: nn.Module, x: Tensor, target: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return output, features, loss and the gradient of every parameter; computed by autocast where ``dtype`` is given.

    The loss is ours for our network and written out for the plain one. x [B, 3, S, S], target [B, 3, 2S, 2S].
    """
    model.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, dtype, enabled=dtype not in (None, torch.float32)):
        y, feats = model(x, _TASK, return_features=True)
        if isinstance(model, IPT):
            loss = pretrain_loss(y, target, feats, _LAM).total
        else:
            loss = supervised_loss(y, target) + _LAM * contrastive_loss(feats)
    (_SCALE * loss).backward()
    found = {"output": y, "features": feats, "loss": loss}
    found |= {name: p.grad / _SCALE for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach().cpu() for name, value in found.items()}


def compare(
    name: str, found: Mapping[str, Tensor], plain: Mapping[str, Tensor], exact: Mapping[str, Tensor], eps: float
) -> Iterator[Row]:
    """Yield rows: each result within twice the plain network's relative error, or its median one if that is more."""
    own = ("output", "features", "loss")
    gradients = [key for key in exact if key not in own]
    if found.keys() != exact.keys():
        differing = sorted(found.keys() ^ exact.keys())[:3]
        yield Row(f"{name}, gradients", False, f"not the same parameters have one: {', '.join(differing)}")
        return
    missed = {key: distance(plain[key], exact[key]) for key in exact}
    usual = statistics.median(missed[key] for key in gradients)
    for key in own:
        yield judge(f"{name}, {key}", [(key, distance(found[key], exact[key]), 2 * max(missed[key], eps))])
    errors = [(key, distance(found[key], exact[key]), 2 * max(missed[key], usual, 4 * eps)) for key in gradients]
    yield judge(f"{name}, all {len(gradients)} gradients", errors)


def golden(setting: Setting) -> Row:
    """Compare the outputs of the released code's small network, for all tasks, in float32."""
    case = "the released code's outputs, float32"
    folder = Path(os.environ.get("IPT_FAST_SHARED", ROOT.parent / "shared")) / "golden"
    if not (folder / "ipt_official.safetensors").exists():
        return Row(case, None, "no golden files here; IPT_FAST_SHARED names their folder")
    from safetensors.torch import load_file

    tensors = load_file(folder / "ipt_official.safetensors")
    c = json.loads((folder / "ipt_official.json").read_text())["config"]
    sizes = {"n_feats": c["n_feats"], "num_heads": c["heads"], "num_layers": c["layers"]}
    config = IPTConfig(**sizes, patch_size=c["patch_size"], patch_dim=c["patch_dim"], tasks=tuple(c["tasks"]))
    model = IPT(config)
    mean = {key: value.clone() for key, value in model.state_dict().items() if "_mean." in key}
    weights = {k.removeprefix("weights."): v.float() for k, v in tensors.items() if k.startswith("weights.")}
    model.load_state_dict(weights)
    model.load_state_dict(mean, strict=False)  # the golden run did not round them
    model.to(setting.device).eval()
    with torch.no_grad():
        outputs = [model(tensors["input"].float().to(setting.device), task).cpu() for task in config.tasks]
    errors = [
        (task, distance(y, tensors[f"output.task{i}"]), _GOLDEN)
        for i, (task, y) in enumerate(zip(config.tasks, outputs, strict=True))
    ]
    return judge(case, errors)


def check(setting: Setting) -> Iterator[Row]:
    """Yield the rows of "base" in each 16-bit dtype; of a small network if small."""
    torch.manual_seed(0)
    name, device = "small network" if setting.small else "base", setting.device
    model = IPT(setting.network).train()
    S = model.config.patch_size
    x, target = torch.rand(2, 3, S, S) * 255, torch.rand(2, 3, 2 * S, 2 * S) * 255
    exact = results(plain_copy(model).double(), x.double(), target.double())
    model, x, target = model.to(device), x.to(device), target.to(device)
    plain = plain_copy(model)
    for dtype in setting.dtypes:
        pair = [results(network, x, target, dtype) for network in (model, plain)]
        yield from compare(f"{name}, {short(dtype)}", *pair, exact, max(torch.finfo(dtype).eps, _LEAST))
    yield golden(setting)
