"""The former home of ``save_network``, for programs that import it from here; it is ``ipt_fast.checkpoint`` now."""

from ipt_fast.checkpoint import save_network

__all__ = ["save_network"]
