"""How much of this machine is this process's."""

import os


def cpu_cores() -> int:
    """Return the cores this process may run on, shared evenly with the other ranks on this machine under torchrun."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // local_ranks())


def local_ranks() -> int:
    """Return the ranks on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
