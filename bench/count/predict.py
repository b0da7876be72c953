"""Seconds of a counted step on a device: each operation takes the longest of its bytes, its FLOPs and a launch."""

from bench.count.rates import Device
from bench.count.trace import Counted, Operation


def seconds_of(op: Operation, device: Device) -> float:
    """Estimate one operation on the device."""
    rate = device.flops.get(op.dtype, min(device.flops.values())) * device.shares.get(op.kind, 0.5)
    return max(op.bytes / device.bandwidth, op.flops / rate, device.launch * op.launches)


def seconds_by_kind(counted: Counted, device: Device) -> dict[str, float]:
    """Estimate the device's time, kind by kind, the longest first."""
    sums: dict[str, float] = {}
    for op in counted.operations:
        sums[op.kind] = sums.get(op.kind, 0.0) + seconds_of(op, device)
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def host_seconds(counted: Counted, device: Device) -> float:
    """Estimate the host's time to launch all operations one by one."""
    return counted.launches * device.host
