"""The CUDA C++ attention against the eager reference in float64, forward and backward, on the GPU that is there.

python -m bench.proof.csrc --json FILE
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.csrc_cases import CASES, Case, attend, draw, errors
from ipt_fast.cli.tables import print_table
from ipt_fast.ops.patch_attention import backend_status

# On a GPU alone: IPT's own size, and more heads than the y of a grid holds.
_LARGE = (Case(4, 12, 256, 256, 48), Case(8200, 8, 4, 4, 32))


def compare(case: Case, impl: str, device: str) -> dict[str, Any]:
    """Return the case with the largest share of its error budget, and whether a second call gives the same bits."""
    torch.manual_seed(0)
    tensors = [None if x is None else x.to(device) for x in draw(case)]
    found, again = (attend(tensors, case.H, case.scale, impl, torch.float16) for _ in range(2))
    shares = {name: error / allowed for name, error, allowed in errors(found, tensors, case.H, case.scale)}
    worst = max(shares, key=lambda name: float("inf") if shares[name] != shares[name] else shares[name])
    same = all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    return {"case": case._asdict(), "worst": worst, "share": shares[worst], "same_bits": same}


def passed(row: dict[str, Any]) -> bool:
    """Return whether a case is within its budget and repeats its bits; nan is not."""
    return row["share"] <= 1 and row["same_bits"]


def rows_of(measured: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a table: the case, the result that is worst, its share of the budget, the verdict."""
    rows = []
    for row in measured:
        case = Case(**row["case"])
        sizes = f"B={case.B} H={case.H} N={case.N} M={case.M} d={case.d}"
        more = {"embeds": case.embeds, "scale": case.scale, "mean": case.mean, "size": case.size}
        changed = [f"{key}={value}" for key, value in more.items() if value != Case._field_defaults[key]]
        verdict = "passed" if passed(row) else "FAILED" if row["same_bits"] else "FAILED: other bits the second time"
        rows.append((" ".join([sizes, *changed]), row["worst"], f"{row['share']:.2f}", verdict))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all within budget, or the backend cannot be had here, which is said; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m bench.proof.csrc", description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--impl", default="cuda", help="another backend: does the comparison itself work?")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    reason = backend_status(args.device, torch.float16)[args.impl]
    cases = () if reason else CASES + (_LARGE if args.device == "cuda" else ())
    measured = [compare(case, args.impl, args.device) for case in cases]
    if args.json:
        args.json.write_text(json.dumps({"why_not": reason, "cases": measured}, indent=1) + "\n")
    if reason:
        print(f'impl="{args.impl}" {reason}')
        return 0
    columns = ("case", "worst", "share of the budget", "verdict")
    print_table(f'impl="{args.impl}" against float64', columns, rows_of(measured), ("share of the budget",))
    return 0 if all(map(passed, measured)) else 1


if __name__ == "__main__":
    sys.exit(main())
