"""The fused ops. Needs torch alone; each backend that needs more is imported when it is chosen."""

from ipt_fast.ops.patch_attention import patch_attention
from ipt_fast.ops.patch_contrastive_loss import patch_contrastive_loss

__all__ = ["patch_attention", "patch_contrastive_loss"]
