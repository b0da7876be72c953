"""Compile every registered Triton kernel for the GPUs it is for without a GPU, and gate on what comes out.

CUDA C++ kernels join where a compiler for them is installed (bench/csrc_facts.py).

    python -m bench.offline            table on the screen and in bench/results/offline.md
    python -m bench.offline --check    table and exit code only

A kernel passes where it has tensor-core instructions (if it must), no register spills, shared memory within what a
block of that GPU can have, and 64-bit offsets into every tensor that may be large. Exit code 1 where any fails.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

from bench import csrc_facts
from bench.offline_cases import OfflineCase
from bench.ptx_facts import SHARED_LIMIT, PtxFacts, compile_case
from ipt_fast.cli.tables import markdown_table, print_table
from ipt_fast.ops._registry import module_missing

CASES = Path(__file__).parent / "offline_cases"
RESULT = Path(__file__).parent / "results" / "offline.md"
COLUMNS = ("op", "kernel", "dtype and shape", "arch", "registers", "shared bytes", "mma", "spilled bytes", "ok")
_LONG = 50  # characters of a verdict that the table on the screen holds
NUMERIC = COLUMNS[4:8]


@dataclass(frozen=True)
class Outcome:
    """One kernel on one GPU. ``facts`` is None where it did not compile; ``problem`` is None where it passes."""

    op: str
    kernel_name: str
    label: str
    capability: int
    facts: PtxFacts | None
    problem: str | None

    def row(self) -> tuple[object, ...]:
        """Return the cells under ``COLUMNS``."""
        facts = (
            astuple(self.facts)[:5] if self.facts else (f"sm_{self.capability}" if self.capability else "", *[""] * 4)
        )
        return (self.op, self.kernel_name, self.label, *facts, self.problem or "ok")


def case_modules() -> list[str]:
    """Return the names of all modules that register cases, sorted."""
    return [f"bench.offline_cases.{path.stem}" for path in sorted(CASES.glob("*.py")) if path.stem != "__init__"]


def judge(facts: PtxFacts, shared_limit: int, needs_tensor_cores: bool, small: Sequence[str] = ()) -> str | None:
    """Return why the compiled kernel fails the gate, or None; ``small``: as ``OfflineCase`` has it."""
    problems = []
    if facts.spills:
        problems.append(f"spills {facts.spills} bytes")
    if facts.shared > shared_limit:
        problems.append(f"shared memory over the limit of {shared_limit}")
    if needs_tensor_cores and not facts.mma:
        problems.append("no tensor-core instruction")
    if narrow := [name for name in facts.narrow if name not in small]:
        problems.append(f"32-bit offsets into {', '.join(narrow)}")
    return "; ".join(problems) or None


def run(modules: Sequence[str], workers: int = 2) -> list[Outcome]:
    """Compile all cases of ``modules`` in ``workers`` processes where the interpreter is off."""
    with mock.patch.dict(os.environ), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        os.environ.pop("TRITON_INTERPRET", None)  # the processes, which are still to start, could compile nothing
        jobs: list[tuple[str, int, int]] = []
        outcomes: list[Outcome] = []
        for module, listed in zip(modules, pool.map(_list_jobs, modules), strict=True):
            if isinstance(listed, str):
                outcomes.append(Outcome(module.rpartition(".")[2], "", "", 0, None, listed))
            else:
                jobs += [(module, index, capability) for index, capability in listed]
        outcomes += pool.map(_check_job, jobs)
    return sorted(outcomes, key=lambda o: (o.op, o.kernel_name, o.label, o.capability))


def _list_jobs(module: str) -> list[tuple[int, int]] | str:
    try:
        cases = importlib.import_module(module).offline_cases()
    except Exception as error:  # a broken case file fails the gate by name, the other files still run
        return f"cases not listed: {type(error).__name__}: {error}"
    return [(index, capability) for index, case in enumerate(cases) for capability in case.targets]


def _check_job(job: tuple[str, int, int]) -> Outcome:
    """Compile one case for one GPU and judge it; a kernel that does not compile is an outcome, not an exception."""
    module, index, capability = job
    case: OfflineCase = importlib.import_module(module).offline_cases()[index]
    name = (case.op, case.kernel_name, case.describe(), capability)
    try:
        facts = compile_case(case, capability)
    except Exception as error:  # the compiler raises many types; the table must show every kernel
        return Outcome(*name, None, f"does not compile: {type(error).__name__}: {str(error).strip()[:300]}")
    return Outcome(*name, facts, judge(facts, SHARED_LIMIT[capability], case.needs_tensor_cores, case.small))


def check_csrc() -> list[Outcome]:
    """Compile the CUDA C++ kernels by the compilers that are installed; none where there are none."""
    outcomes = []
    for compiler, (archs, compile_file) in csrc_facts.compilers().items():
        for source in csrc_facts.sources():
            for arch in archs:
                name = (source.stem, "csrc", f"fp16 d=32, 48, 64, {compiler}", arch)
                try:
                    facts = compile_file(source, arch)
                    outcomes.append(Outcome(*name, facts, judge(facts, csrc_facts.SHARED, needs_tensor_cores=True)))
                except RuntimeError as error:
                    outcomes.append(Outcome(*name, None, f"does not compile: {str(error)[:300]}"))
    return outcomes


def shortened(outcomes: Sequence[Outcome]) -> tuple[list[tuple[object, ...]], list[str]]:
    """Return rows for the screen, and the long reasons, each once, that the rows then name by number."""
    rows, notes = [], []
    for row in (o.row() for o in outcomes):
        verdict = str(row[-1])
        if len(verdict) > _LONG:
            if verdict not in notes:
                notes.append(verdict)
            row = (*row[:-1], f"fails, see [{notes.index(verdict) + 1}]")
        rows.append(row)
    return rows, notes


def write_markdown(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the table with the versions that made it."""
    text = (
        "# Kernels compiled without a GPU\n\n"
        f"`python -m bench.offline`, triton {version('triton')}, torch {version('torch')}. Registers a thread, "
        "dynamic and static shared memory a block, tensor-core instructions in the PTX, bytes spilled.\n\n"
    )
    # What bench.csrc_report wrote below the table stays.
    _, heading, kept = (path.read_text() if path.exists() else "").partition(csrc_facts.HEADING)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = markdown_table(COLUMNS, [o.row() for o in outcomes], NUMERIC)
    path.write_text(text + table + (f"\n{heading}{kept}" if heading else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 all pass, 1 any fails, 2 Triton is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.offline", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="do not write bench/results/offline.md")
    parser.add_argument("--only", metavar="OP", help="only the cases of bench/offline_cases/OP.py (writes nothing)")
    parser.add_argument("--workers", type=int, default=2, help="compiler processes (default 2)")
    args = parser.parse_args(argv)
    if reason := module_missing("triton"):
        print(f"bench.offline: {reason}; pip install triton", file=sys.stderr)
        return 2
    known = {module.rpartition(".")[2]: module for module in case_modules()}
    modules = [module for op, module in known.items() if args.only in (None, op)]
    if not modules:
        print(f"bench.offline: no cases for {args.only!r}; ops with cases: {', '.join(known)}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    outcomes = run(modules, args.workers) + (check_csrc() if args.only is None else [])
    rows, notes = shortened(outcomes)
    print_table("kernels compiled without a GPU", COLUMNS, rows, NUMERIC)
    for number, note in enumerate(notes, 1):
        print(f"[{number}] {note}")
    failed = [o for o in outcomes if o.problem]
    print(f"{len(outcomes)} compiled in {time.perf_counter() - start:.1f} s, {len(failed)} failed")
    if not args.check and args.only is None:
        write_markdown(outcomes, RESULT)
        print(f"written: {RESULT.relative_to(Path(__file__).parent.parent)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
