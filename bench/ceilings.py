"""The two ceilings that every result is a fraction of: bytes a second of a copy, FLOP/s of a large matmul.

python -m bench.ceilings [--device cpu|cuda] [--json FILE]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from bench.case import seconds_of
from ipt_fast.cli.tables import print_table

_COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
_SIDE = {"cpu": 1536, "cuda": 8192}
SMALL_SIDE = 512  # to see whether it runs at all: a processor without bfloat16 takes minutes for a large one
# Few processors multiply in float16; on the others one large GEMM takes half a minute.
_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class Ceilings:
    """Measured on ``device`` with ``threads`` CPU threads.

    ``copy_bandwidth``: bytes read plus bytes written a second. ``matmul_rate``: dtype name -> FLOP/s. ``steady``: the
    lowest of the repeated measurements as a share of the highest; 1 where there was one.
    """

    device: str
    threads: int
    copy_bandwidth: float
    matmul_rate: dict[str, float]
    steady: float = 1.0


def measure_ceilings(device: torch.device, seconds: float = 1.0, side: int | None = None) -> Ceilings:
    """Measure median rates, each of about ``seconds`` of running; ``side``: of the matmul, where not the usual one."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device, seconds)
    n, rates = side or _SIDE[device.type], {}
    for dtype in _DTYPES[device.type]:
        a = torch.randn(n, n, device=device).to(dtype)
        took = _median_seconds(partial(torch.matmul, a, a), device, seconds)
        rates[str(dtype).removeprefix("torch.")] = 2 * n**3 / took
    return Ceilings(device_name(device), torch.get_num_threads(), copy, rates)


def highest(measured: Sequence[Ceilings]) -> Ceilings:
    """Return the highest of several measurements of one machine: what takes time from it can only lower them."""
    copies = [c.copy_bandwidth for c in measured]
    rates = {name: [c.matmul_rate[name] for c in measured] for name in measured[0].matmul_rate}
    steady = min(min(values) / max(values) for values in (copies, *rates.values()))
    best = {name: max(values) for name, values in rates.items()}
    return replace(measured[0], copy_bandwidth=max(copies), matmul_rate=best, steady=steady)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return device.type


def _median_seconds(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 1000):
        times.append(seconds_of(call, device))
    return statistics.median(times[2:])  # the first two warm caches and choose kernels


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; write the rates where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.ceilings", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="a small matmul: does it run at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write them to FILE")
    args = parser.parse_args(argv)
    ceilings = measure_ceilings(torch.device(args.device), *((0.1, SMALL_SIDE) if args.small else ()))
    rows = [("copy", f"{ceilings.copy_bandwidth / 1e9:.1f} GB/s")]
    rows += [(f"matmul {dtype}", f"{rate / 1e9:.0f} GFLOP/s") for dtype, rate in ceilings.matmul_rate.items()]
    print_table(f"ceilings of {ceilings.device}, {ceilings.threads} threads", ("what", "measured"), rows, ("measured",))
    if args.json:
        args.json.write_text(json.dumps(asdict(ceilings), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
