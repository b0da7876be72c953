"""What a trace of ``train.py --profile`` says in a few lines: where the device's time went."""

import gzip
import json
from collections import defaultdict
from pathlib import Path

_NAME_LENGTH = 70


def heaviest(path: Path, count: int = 15) -> list[tuple[str, int, float, float]]:
    """(name, calls, ms, share of all) of what took most time in a trace file (.json or .json.gz).

    GPU kernels and copies where there are any, otherwise PyTorch's operators without what they call.
    """
    data = path.read_bytes()
    content = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    events = [e for e in content["traceEvents"] if e.get("ph") == "X"]
    on_device = [e for e in events if str(e.get("cat")) in ("kernel", "gpu_memcpy", "gpu_memset")]
    times: dict[str, list[float]] = defaultdict(list)
    if on_device:
        for event in on_device:
            times[event["name"]].append(event["dur"])
    else:
        for name, own in _own_times([e for e in events if e.get("cat") == "cpu_op"]):
            times[name].append(own)
    total = sum(map(sum, times.values())) or 1.0
    order = sorted(times.items(), key=lambda item: -sum(item[1]))[:count]
    return [(name[:_NAME_LENGTH], len(t), sum(t) / 1e3, sum(t) / total) for name, t in order]


def _own_times(events: list[dict]) -> list[tuple[str, float]]:
    """(name, microseconds without those of the operators inside) of nested events."""
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
