"""One check in a process of its own: each result is in a file as soon as it is there.

python -m bench.proof.check network --device cuda --rows FILE
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ipt_fast.model import PRESETS, IPTConfig

# name -> module and function: (Setting) -> rows
CHECKS = {
    "network": "bench.proof.network:check",
    "ops": "bench.proof.ops:check",
    "steps": "bench.proof.steps:check",
    "waits": "bench.proof.steps:check_waits",
    "graphs": "bench.proof.steps:check_graphs",
    "ranks": "bench.proof.ranks:check",
    "throughput": "bench.proof.throughput:check",
}

SMALL = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1)


@dataclass(frozen=True)
class Setting:
    """Where a check runs; ``small``: so little that a CPU does it in seconds; ``only``: in these dtypes."""

    device: torch.device
    small: bool = False
    only: tuple[torch.dtype, ...] = ()

    @property
    def network(self) -> IPTConfig:
        """The network that is checked: "base", or one that a slow CPU computes in no time."""
        return SMALL if self.small else PRESETS["base"]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The 16-bit dtypes that the device computes in; on a CPU float32 stands in for float16."""
        if self.only:
            return self.only
        if self.device.type == "cpu":
            return torch.bfloat16, torch.float32
        has_bf16 = torch.cuda.get_device_capability(self.device) >= (8, 0)
        return (torch.bfloat16, torch.float16) if has_bf16 else (torch.float16,)


@dataclass(frozen=True)
class Row:
    """One result. ``passed``: None where it was not run, and ``found`` says why. ``values``: figures for a table."""

    case: str
    passed: bool | None
    found: str
    values: dict[str, float | str] | None = None


def short(dtype: torch.dtype) -> str:
    """Return "bfloat16" of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def distance(found: Tensor, exact: Tensor) -> float:
    """Return |found - exact| / |exact| in float64; |found| where ``exact`` is all zero."""
    norm = exact.double().norm().item()
    return (found.double() - exact.double()).norm().item() / (norm or 1.0)


def judge(case: str, errors: Iterable[tuple[str, float, float]]) -> Row:
    """Return a row on (name, error, allowed error): passed where no error, nan included, is beyond what is allowed."""
    shares = [(name, error / allowed if error == error else float("inf")) for name, error, allowed in errors]
    name, worst = max(shares, key=lambda item: item[1])
    which = f", {name}" if len(shares) > 1 else ""
    return Row(case, worst <= 1, f"{worst:.2f} of the error that is allowed{which}", {"share": worst})


def function_of(name: str) -> Callable[[Setting], Iterator[Row]]:
    """Return the function of a check."""
    module, _, function = CHECKS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def run_check(name: str, setting: Setting, path: Path) -> list[Row]:
    """Run a check, append each of its rows to the file; what it raises is a row too."""
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(
            f"{ {True: 'passed', False: 'FAILED', None: 'not run'}[row.passed] }: {row.case}: {row.found}", flush=True
        )

    try:
        for row in function_of(name)(setting):
            add(row)
    except Exception as error:  # of any kind: the report has to say so, after what was found before
        add(Row(f"{name} goes to its end", False, f"{type(error).__name__}: {error}"))
        import traceback

        traceback.print_exc()
    return rows


def read_rows(path: Path) -> list[Row]:
    """Return the rows in a file; none where there is no file."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a row failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.proof.check", description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=CHECKS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small networks and batches")
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE", help="JSON lines, appended to")
    args = parser.parse_args(argv)
    rows = run_check(args.name, Setting(torch.device(args.device), args.small), args.rows)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
