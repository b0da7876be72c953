"""``ipt-fast count``: launches, bytes, FLOPs, casts and waits of a training step, and its time as they predict it.

    python -m bench.count [--preset base] [--task sr2] [--batch-size 8 64] [--device h100] [--set KEY=VALUE] [--out DIR]
    python -m bench.count --restore [bf16|fp16|fp32|fp8] ...

Everything is counted on tensors without data, through the product's own step; times are estimates from a table of
rates (``bench/count/rates.py``).
"""

import argparse
import sys
from collections.abc import Sequence

from bench.count.predict import host_seconds, seconds_by_kind
from bench.count.rates import DEVICES, Device
from bench.count.restoration import report
from bench.count.trace import Counted, trace_step
from ipt_fast.cli.count import add_arguments
from ipt_fast.cli.tables import markdown_table, print_table
from ipt_fast.engine.config import TrainConfig, recipe

_SUMMARY = (
    "device", "B", "launches", "casts", "large cats", "waits", "GB", "TFLOP", "device ms", "host ms", "patches/s", "MFU"
)  # fmt: skip


def count(preset: str, task: str, batch_size: int, device: Device, changes: Sequence[str] = ()) -> Counted:
    """Count one step of a preset's recipe on a device, in the precision that training takes there."""
    return trace_step(_config(preset, batch_size, changes), task, device)


def _config(preset: str, batch_size: int, changes: Sequence[str]) -> TrainConfig:
    return recipe(preset, [f"batch_size={batch_size}", *changes])


def summary_row(counted: Counted, device: Device, batch_size: int) -> list[str]:
    """Return the cells of ``_SUMMARY``."""
    gpu, host = sum(seconds_by_kind(counted, device).values()), host_seconds(counted, device)
    step, flops = max(gpu, host), sum(op.flops for op in counted.operations)
    taken = {op.dtype for op in counted.operations if op.flops}
    peak = max(rate for dtype, rate in device.flops.items() if dtype in taken)
    return [
        device.name, str(batch_size), f"{counted.launches:,}", f"{len(counted.of('cast')):,}",
        str(sum(op.is_large_cat for op in counted.operations)), str(len(counted.waits)),
        f"{sum(op.bytes for op in counted.operations) / 1e9:.1f}", f"{flops / 1e12:.2f}", f"{1e3 * gpu:.1f}",
        f"{1e3 * host:.1f}", f"{batch_size / step:,.0f}", f"{100 * flops / step / peak:.0f} %",
    ]  # fmt: skip


def kind_rows(counted: Counted, device: Device) -> list[list[str]]:
    """Return a row a kind: operations, GB, TFLOP, estimated milliseconds."""
    rows = []
    for kind, seconds in seconds_by_kind(counted, device).items():
        ops = counted.of(kind)
        gigabytes, teraflops = sum(op.bytes for op in ops) / 1e9, sum(op.flops for op in ops) / 1e12
        rows.append([kind, f"{len(ops):,}", f"{gigabytes:.2f}", f"{teraflops:.2f}", f"{1e3 * seconds:.2f}"])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; write them and a plot where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.count", description=__doc__.split("\n")[0])
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.restore:
        return report(args)
    kinds = ("kind", "operations", "GB", "TFLOP", "ms, estimated")
    found, rows, text = [], [], []
    for name in args.device:
        device = DEVICES[name]
        for batch_size in args.batch_size or [8, 64]:
            counted = count(args.preset, args.task, batch_size, device, args.set)
            found.append((device, batch_size, counted))
            rows.append(summary_row(counted, device, batch_size))
            title = f"{device.name}, {args.preset} {args.task}, B={batch_size}"
            print_table(title, kinds, kind_rows(counted, device), kinds[1:])
            text.append(f"## {title}\n\n{markdown_table(kinds, kind_rows(counted, device), kinds[1:])}")
            for wait in counted.waits:
                print(f"the host waits: {wait}")
                text.append(f"The host waits: {wait}.\n")
    print_table("a step; times are estimates", _SUMMARY, rows, _SUMMARY[1:])
    if args.out:
        from bench.count.plot import draw

        args.out.mkdir(parents=True, exist_ok=True)
        command = f"ipt-fast count --preset {args.preset} --task {args.task}"
        head = f"# A training step, counted\n\n`{command}`; nothing was measured on a GPU. {_NOTE}\n"
        summary = markdown_table(_SUMMARY, rows, _SUMMARY[1:])
        (args.out / "count.md").write_text(
            "\n".join([head, summary, "![estimated milliseconds of a step by kind](count.png)\n", *text])
        )
        bars = [(d.name, f"B={b}", seconds_by_kind(c, d), host_seconds(c, d)) for d, b, c in found]
        draw(bars, args.out / "count.png")
    return 0


_NOTE = (
    "An operation takes the longest of its bytes, its FLOPs and a launch, at the rates of `bench/count/rates.py`; "
    "`large cats` join more than a megabyte; MFU is against the GEMM rate there."
)

if __name__ == "__main__":
    sys.exit(main())
