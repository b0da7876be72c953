"""The pre-training loss: L1 (Eq. 4) + lam * contrastive (Eq. 5) of Chen et al., CVPR 2021."""

from typing import Annotated, Literal, NamedTuple

from torch import Tensor

from ipt_fast.arguments import Shape, checked
from ipt_fast.ops import patch_contrastive_loss

_Images = Annotated[Tensor, Shape("...", "float")]


class PretrainLoss(NamedTuple):
    """Scalars; ``total = l1 + lam * contrastive``."""

    total: Tensor
    l1: Tensor
    contrastive: Tensor


@checked
def l1_loss(output: _Images, target: _Images) -> Tensor:
    """Return mean |output - target| (Eq. 4) in float32 or wider. Both [B, 3, H, W], pixels 0..255.

    Raises:
        ValueError: the shapes differ (broadcasting would train on nonsense).
    """
    if output.shape != target.shape:
        raise ValueError(f"l1_loss: output {list(output.shape)} and target {list(target.shape)} differ in shape")
    return (output - target).abs().mean()


@checked
def pretrain_loss(
    output: _Images,
    target: _Images,
    feats: Annotated[Tensor, Shape("B N D", "float")] | None,
    lam: float = 0.1,
    mode: Literal["paper", "supcon"] = "paper",
    scope: Literal["local", "global"] = "local",
) -> PretrainLoss:
    """Return Eq. 6 of the paper, L1 (Eq. 4) + lam * contrastive (Eq. 5), and its parts.

    Args:
        output, target: [B, 3, H, W], pixels 0..255.
        feats: contrastive features [B, N, D]; may be None where ``lam`` is 0.
        lam: weight of the contrastive part; 0.1 in the paper (Table 5). 0 leaves it out.
        mode, scope: see ``patch_contrastive_loss``.

    Raises:
        ValueError: shapes differ, or features are missing where ``lam`` needs them.
    """
    l1 = l1_loss(output, target)
    if lam == 0:
        return PretrainLoss(l1, l1.detach(), l1.new_zeros(()))
    if feats is None:
        raise ValueError(f"pretrain_loss: lam={lam} needs feats; call the model with return_features=True")
    contrastive = patch_contrastive_loss(feats, mode, scope=scope)
    return PretrainLoss(l1 + lam * contrastive, l1.detach(), contrastive.detach())
