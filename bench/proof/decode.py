"""How many crops a second each loader decodes, and whether DALI's pixels are those of the PyTorch loader.

python -m bench.proof.decode PHOTOS --device cuda --seconds 8 --json FILE
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ipt_fast.cli.tables import print_table
from ipt_fast.data import CropLoader, ImageIndex, build_index, make_loader
from ipt_fast.data.dali import unavailable_reason

COLUMNS = ("loader", "crops/s", "largest difference", "mean difference", "equal bytes")
_BATCH = 64
_WARM_UP, _COMPARED = 3, 8  # batches


def measure(index: ImageIndex, loader: str, device: str, seconds: float) -> dict[str, Any]:
    """Measure one loader's crops a second (one decode each) and, for DALI, its distance from the other."""
    with closing(make_loader(index, loader=loader, batch_size=_BATCH, device=device)) as batches:
        row: dict[str, Any] = {"loader": batches.description, "crops_per_s": _rate(batches, seconds)}
    if loader == "dali":
        row |= compare(index, device)
    return row


def _rate(loader: CropLoader, seconds: float) -> float:
    for _ in range(_WARM_UP):
        next(loader)
    crops, start = 0, time.perf_counter()
    while not crops or time.perf_counter() - start <= seconds:
        batch = next(loader)
        crops += len(batch.gt)
    if batch.gt.is_cuda:
        torch.cuda.synchronize()
    return crops / (time.perf_counter() - start)


def compare(index: ImageIndex, device: str) -> dict[str, Any]:
    """Compare the first batches of both loaders, byte by byte (0..255)."""
    ours = make_loader(index, loader="dali", batch_size=_BATCH, device=device)
    theirs = make_loader(index, loader="torch", batch_size=_BATCH, workers=0)
    largest, total, equal, count = 0, 0, 0, 0
    with closing(ours), closing(theirs):
        for _, a, b in zip(range(_COMPARED), ours, theirs, strict=False):
            difference = (a.gt.cpu().int() - b.gt.int()).abs()
            largest = max(largest, int(difference.max()))
            total += int(difference.sum())
            equal += int((difference == 0).sum())
            count += difference.numel()
    return {"largest_difference": largest, "mean_difference": total / count, "equal_bytes": equal / count}


def rows_of(measured: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a table under ``COLUMNS``."""
    rows: list[tuple[str, ...]] = []
    for row in measured:
        if "why_not" in row:
            rows.append((row["loader"], f"not measured: {row['why_not']}", "", "", ""))
        elif "equal_bytes" in row:
            mean, equal = f"{row['mean_difference']:.3f}", f"{row['equal_bytes']:.2%}"
            rows.append((row["loader"], f"{row['crops_per_s']:,.0f}", str(row["largest_difference"]), mean, equal))
        else:
            rows.append((row["loader"], f"{row['crops_per_s']:,.0f}", "", "", ""))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; DALI that is not installed is said, and is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench.proof.decode", description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each loader (default 8)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    index = build_index(args.photos, progress=False)
    measured = [measure(index, "torch", "cpu", args.seconds)]
    if reason := unavailable_reason():
        measured.append({"loader": "DALI loader", "why_not": reason})
    else:
        for device in dict.fromkeys(("cpu", args.device)):
            measured.append(measure(index, "dali", device, args.seconds))
    print_table(f"decoding {len(index.usable)} photos, crops for all tasks", COLUMNS, rows_of(measured), COLUMNS[1:])
    if args.json:
        args.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
