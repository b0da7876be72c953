"""How many CPU cores this process may use."""

import os


def cpu_cores() -> int:
    """Cores that this process may run on, shared evenly with the other ranks on this machine under torchrun."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
