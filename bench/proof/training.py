"""What a run of ``train.py --profile`` left, in a few lines: its log, and its trace."""

import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

_NAME_LENGTH = 70


def summarise(lines: list[dict[str, Any]], warm_up: int) -> dict[str, Any]:
    """Return the means over the log lines after the first ``warm_up`` steps, each line weighed by its steps."""
    pairs = [(line, line["step"] - before["step"]) for before, line in pairwise(lines)]
    late = [(line, steps) for line, steps in pairs if line["step"] - steps >= warm_up and steps]
    if not late:
        return {}
    steps = sum(n for _, n in late)
    milliseconds = sum(line["step_ms"] * n for line, n in late)
    result = {
        "steps": steps,
        "step_ms": milliseconds / steps,
        # Waiting is a share of time, so it is weighed by time.
        "data_stall_pct": sum(line["data_stall_pct"] * line["step_ms"] * n for line, n in late) / milliseconds,
        "patches_per_s": sum(line["patches_per_s"] * line["step_ms"] * n for line, n in late) / milliseconds,
        "degrade_ms": sum(line["degrade_ms"] * n for line, n in late) / steps,
        "memory_gib": late[-1][0]["memory_gib"],
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
    }
    decode = [line["decode_ms"] for line, _ in late if line.get("decode_ms") is not None]
    return result | ({"decode_ms": sum(decode) / len(decode)} if decode else {})


def heaviest(path: Path, count: int = 15) -> list[tuple[str, int, float, float]]:
    """Return (name, calls, ms, share of all) of what took most time in a trace file (.json or .json.gz).

    GPU kernels and copies where there are any, otherwise PyTorch's operators without what they call.
    """
    data = path.read_bytes()
    content = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    events = [e for e in content["traceEvents"] if e.get("ph") == "X"]
    on_device = [e for e in events if str(e.get("cat")) in ("kernel", "gpu_memcpy", "gpu_memset")]
    taken = [(event["name"], event["dur"]) for event in on_device]
    times: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in taken or _own_times([e for e in events if e.get("cat") == "cpu_op"]):
        times[name].append(microseconds)
    total = sum(map(sum, times.values())) or 1.0
    order = sorted(times.items(), key=lambda item: -sum(item[1]))[:count]
    return [(name[:_NAME_LENGTH], len(t), sum(t) / 1e3, sum(t) / total) for name, t in order]


def _own_times(events: list[dict]) -> list[tuple[str, float]]:
    """Return (name, microseconds without those of the operators inside) of nested events."""
    own = []
    open_events: dict[object, list[list]] = defaultdict(list)  # thread -> [end, name, own time]
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        stack = open_events[event["tid"]]
        while stack and stack[-1][0] <= event["ts"]:
            own.append((stack[-1][1], stack.pop()[2]))
        if stack:
            stack[-1][2] -= event["dur"]
        stack.append([event["ts"] + event["dur"], event["name"], event["dur"]])
    for stack in open_events.values():
        own += [(name, time) for _, name, time in stack]
    return own
