"""Bounds of every kernel: what each pipe of a GPU needs at its peak rate, which one limits. Nothing runs on a GPU.

    python -m bench.bounds [--only OP] [--device v100 a100 h100] [--batch-size 8 64 256] [--out DIR]

Compiles for the devices asked for, so Triton's interpreter must be off; a minute or two the first time. Peak rates are
in bench/count/rates.py, the arithmetic of a kernel in bench/bounds/<op>.py.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.bounds import csrc
from bench.bounds.bound import Bound
from bench.bounds.launch import Launch
from bench.bounds.model import PIPES, pipe_seconds
from bench.count.rates import PEAKS
from bench.offline_cases import OfflineCase
from bench.ptx_facts import PtxFacts, compile_case
from bench.results_io import Run, read_run
from ipt_fast.cli.tables import markdown_table, print_table
from ipt_fast.gpus import GPUS, find_gpu
from ipt_fast.ops._registry import module_missing

RESULTS = Path(__file__).parent.parent / "results"
OPS = ("patch_attention", "csrc", "patch_contrastive_loss", "row_contrastive_loss", "pixelshuffle_tail", "norm_passes",
       "degrade")  # fmt: skip
COLUMNS = ("kernel", "shape", "B", "registers", "shared bytes", "warps an SM", "waves", *PIPES, "limit", "bound, µs",
           "no overlap, µs", "measured, µs")  # fmt: skip


def launches(op: str, B: int, device: str) -> list[Launch]:
    """Return what ``bench/bounds/<op>.py`` launches."""
    return importlib.import_module(f"bench.bounds.{op}").launches(B, device)


def bounds(ops: Sequence[str], batch_sizes: Sequence[int], device: str, runs: Sequence[Run]) -> Iterator[Bound]:
    """Yield kernel by kernel, and of each one batch size after the other."""
    compiled: dict[str, PtxFacts] = {}
    for op in ops:
        found = [a for B in batch_sizes for a in launches(op, B, device)]
        order = {(a.kernel, a.shape): place for place, a in reversed([*enumerate(found)])}
        for a in sorted(found, key=lambda a: order[a.kernel, a.shape]):  # a small batch may need fewer kernels
            key = f"{a.op} {a.kernel} {a.code.describe()}" if isinstance(a.code, OfflineCase) else a.kernel
            if key not in compiled:
                compiled[key] = _facts(a, device)
            yield Bound(a, device, compiled[key], pipe_seconds(a, PEAKS[device]), measured(a, device, runs))


def _facts(a: Launch, device: str) -> PtxFacts:
    major, minor = GPUS[device].capability
    return compile_case(a.code, 10 * major + minor) if isinstance(a.code, OfflineCase) else csrc.facts(a.code)


def measured(a: Launch, device: str, runs: Sequence[Run]) -> float | None:
    """Return the committed median of the op's own backend at that shape on that device, or None."""
    words = {f"B={a.B}", *a.shape.split()}
    for run in runs:
        if run.environment["device"] == "cuda" and find_gpu(run.ceilings.device) is GPUS[device]:
            for r in run.results:
                if (r.op, r.direction, r.contender) == (a.op, a.direction, "triton") and words <= {*r.shape.split()}:
                    return r.median
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; write them and a plot a device where asked. Exit code 2 where nothing can be compiled."""
    parser = argparse.ArgumentParser(prog="python -m bench.bounds", description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=OPS, nargs="+", default=OPS, metavar="OP", help=f"of {', '.join(OPS)}")
    parser.add_argument("--device", choices=tuple(PEAKS), nargs="+", default=list(PEAKS))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8, 64, 256], metavar="B")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write bounds.md and a plot a device there")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("bench.bounds: TRITON_INTERPRET is set; unset it, the interpreter cannot compile", file=sys.stderr)
        return 2
    if reason := module_missing("triton"):
        print(f"bench.bounds: {reason}; pip install triton", file=sys.stderr)
        return 2
    runs = [read_run(path.parent) for path in sorted(RESULTS.glob("*/results.json"))]
    text = [_HEAD]
    for device in args.device:
        found = list(bounds(args.only, args.batch_size, device, runs))
        rows = [bound.row() for bound in found]
        print_table(f"{device}: bounds, in µs; {_NOTE}", COLUMNS, rows, COLUMNS[2:])
        if args.out:
            from bench.bounds.plot import draw

            args.out.mkdir(parents=True, exist_ok=True)
            draw(found, args.out / f"{device}.png")
            table = markdown_table(COLUMNS, rows, COLUMNS[2:])
            text.append(f"## {device}\n\n![each pipe's time by kernel on {device}]({device}.png)\n\n{table}")
    if args.out:
        (args.out / "bounds.md").write_text("\n".join(text))
    return 0


_NOTE = "arithmetic, nothing was measured"
_HEAD = """# Bounds of the kernels

`python -m bench.bounds --out bench/results/bounds`. **Arithmetic: nothing here ran on a GPU.** Shapes of the `base`
network, both embeddings, 16-bit inputs. Registers and shared memory are what the kernels compile to.

- The five pipes: microseconds that each needs at the peak rate of `bench/count/rates.py` for the work that
  `bench/bounds/` states beside each kernel. What belongs to an SM takes as long as the busiest one: that is the last
  wave. L2 is the larger of all SMs together and of the port of the busiest one.
- Bound: the largest of them, or the least time of a launch. No schedule is faster. No overlap: their sum; slower means
  that latency shows, or that instructions are not counted: addresses, waits, exchange between threads, shared memory.
- Waves: programs over those that fit at the same time, by registers, shared memory and warps.
- Measured: the median in a committed run on that device.
"""

if __name__ == "__main__":
    sys.exit(main())
