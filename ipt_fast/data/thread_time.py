"""CPU time of some of this process's threads, from Linux's /proc: for threads of a library that does not tell."""

from collections.abc import Set
from pathlib import Path

_TASKS = Path("/proc/self/task")


def thread_ids(name: str) -> frozenset[int]:
    """Threads of this process whose names start so; none where there is no /proc."""
    try:
        tasks = list(_TASKS.iterdir())
    except OSError:
        return frozenset()
    return frozenset(int(task.name) for task in tasks if _read(task / "comm").startswith(name))


def cpu_seconds(threads: Set[int]) -> float | None:
    """CPU time of the threads since they began; those that have ended count nothing. None where Linux does not say."""
    times = [_read(_TASKS / str(thread) / "schedstat").split() for thread in threads]
    known = [int(time[0]) for time in times if time]  # nanoseconds on a core, waiting for one, times it got one
    return sum(known) / 1e9 if known else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has just ended
        return ""
