"""The fused ops. Needs torch alone; each backend that needs more is imported when it is chosen."""

from ipt_fast.ops.degrade import degrade
from ipt_fast.ops.ffn import ffn
from ipt_fast.ops.layernorm_linear import layernorm_linear
from ipt_fast.ops.patch_attention import patch_attention
from ipt_fast.ops.patch_contrastive_loss import patch_contrastive_loss
from ipt_fast.ops.pixelshuffle_tail import CollapsedTail, PixelShuffleTail, collapse_tail, pixelshuffle_tail
from ipt_fast.ops.row_contrastive_loss import row_contrastive_loss

__all__ = [
    "CollapsedTail",
    "PixelShuffleTail",
    "collapse_tail",
    "degrade",
    "ffn",
    "layernorm_linear",
    "patch_attention",
    "patch_contrastive_loss",
    "pixelshuffle_tail",
    "row_contrastive_loss",
]
