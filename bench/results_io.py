"""Results of a benchmark run: what one is, out of pytest-benchmark's times, into files and back."""

import csv
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.ceilings import Ceilings
from ipt_fast.cli.info import version_rows


@dataclass
class Result:
    """One contender at one shape. Times in seconds for one call.

    ``faster``: how many times faster than the baseline contender. ``copy`` and ``matmul``: the share of the measured
    copy bandwidth and matmul rate that the least possible bytes and FLOPs of the operation amount to in that
    time. ``gemm_dtype``: the dtype of the GEMMs where it is not ``dtype``. ``peak_bytes``: the most memory held
    beyond what was there before. None: not known, or makes no sense.
    """

    op: str
    direction: str
    shape: str
    contender: str
    dtype: str
    baseline: str
    median: float
    q20: float
    q80: float
    rounds: int
    flops: float
    bytes: float
    cuda_graph: bool
    peak_bytes: int | None
    gemm_dtype: str = ""
    faster: float | None = None
    copy: float | None = None
    matmul: float | None = None

    @property
    def group(self) -> tuple[str, str, str]:
        """What is compared with each other."""
        return self.op, self.direction, self.shape

    @property
    def rate_dtype(self) -> str:
        """The dtype whose matmul rate is this result's ceiling."""
        return self.gemm_dtype or self.dtype

    def row(self) -> tuple[str, ...]:
        """Return the cells under ``report.COLUMNS``."""
        op = self.op if self.direction == "forward" else f"{self.op}, {self.direction}"
        q20, median, q80 = (
            f"{s * 1e3:,.0f}" if s >= 1 else f"{s * 1e3:.4g}" for s in (self.q20, self.median, self.q80)
        )
        faster = "" if self.faster is None else f"{self.faster:.2f}x"
        copy, matmul = ("" if share is None else f"{share:.0%}" for share in (self.copy, self.matmul))
        peak = "" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:.1f}"
        return op, self.shape, f"{self.contender} {self.dtype}", median, f"{q20}..{q80}", faster, copy, matmul, peak


@dataclass
class Run:
    """All results of one machine, what could not be measured, and where it was."""

    environment: dict[str, Any]
    ceilings: Ceilings
    results: list[Result]
    not_measured: list[dict[str, str]]


def read_benchmarks(path: Path, ceilings: Ceilings) -> list[Result]:
    """Return the results in a file of JSON lines (``--lines``), compared with their baselines and the ceilings."""
    results = []
    for case in map(json.loads, path.read_text().splitlines()):
        info = case["extra_info"]
        if "op" not in info:
            continue
        times = np.array(case["stats"]["data"]) / info["calls_per_round"]
        q20, median, q80 = np.quantile(times, (0.2, 0.5, 0.8)).tolist()
        named = {f.name: info[f.name] for f in fields(Result) if f.name in info}
        results.append(Result(**named, median=median, q20=q20, q80=q80, rounds=len(times)))
    compare(results, ceilings)
    return results


def compare(results: Sequence[Result], ceilings: Ceilings) -> None:
    """Fill in ``faster``, ``copy`` and ``matmul``."""
    for r in results:
        rivals = [b for b in results if b.group == r.group and r.baseline in (b.contender, f"{b.contender} {b.dtype}")]
        base = next((b for b in rivals if b.dtype == r.dtype), rivals[0] if rivals else None)
        r.faster = None if base is None else base.median / r.median
        r.copy = r.bytes / r.median / ceilings.copy_bandwidth if r.bytes else None
        rate = ceilings.matmul_rate.get(r.rate_dtype)
        r.matmul = r.flops / r.median / rate if r.flops and rate else None


def environment(device: torch.device) -> dict[str, Any]:
    """Return device, driver and versions, for every result file."""
    return {
        "device": device.type,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "pytest-benchmark": version("pytest-benchmark"),
        **dict(version_rows()),
    }


def save_run(run: Run, folder: Path) -> None:
    """Write ``results.json`` and ``results.csv`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = asdict(run)
    content["results"] = [{key: _short(value) for key, value in row.items()} for row in content["results"]]
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(content["results"])


def read_run(folder: Path) -> Run:
    """Read what ``save_run`` wrote."""
    content = json.loads((folder / "results.json").read_text())
    results = [Result(**row) for row in content["results"]]
    return Run(content["environment"], Ceilings(**content["ceilings"]), results, content["not_measured"])


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
