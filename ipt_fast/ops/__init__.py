"""The fused ops. Needs torch alone; each backend that needs more is imported when it is chosen."""

from ipt_fast.ops.patch_attention import patch_attention

__all__ = ["patch_attention"]
