"""Put one fault after another into a copy of the tree, and see whether the tests notice.

    python -m tests.mutants.run                            all lists
    python -m tests.mutants.run evaluation -j 2 --out runs/mutants.md

Each module of this folder with a list ``MUTANTS`` is one list; its name is what the command takes. For every mutant the
tree is copied, the fault is put in, and pytest runs the mutant's tests there until the first failure. Before that each
set of tests runs once on a copy without a fault: what fails there anyway proves nothing.

A mutant is *caught* where a test fails, *survived* where all pass, and *does not apply* where its text is not in the
file exactly once. Exit code: 0 all caught, 1 any survived or did not apply, 2 wrong usage, or tests that fail without a
fault. pytest does not collect this folder.
"""

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ipt_fast.cli.tables import markdown_table
from tests.mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
_SECONDS = 900  # of one run of tests; a fault that makes them hang is caught


class Outcome(NamedTuple):
    """What became of one mutant."""

    mutant: Mutant
    verdict: str
    seconds: float

    def row(self) -> tuple[str, ...]:
        """Return the cells of the report."""
        old, new = (f"`{' '.join(text.split())}`" for text in (self.mutant.old, self.mutant.new))
        return self.mutant.file, old, new, self.mutant.tests, self.verdict, f"{self.seconds:.0f}"


def lists() -> list[str]:
    """Return the names of the lists."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    return [name for name in names if name not in ("__init__", "run")]


def fails(tests: str, mutant: Mutant | None = None) -> bool:
    """Return whether ``tests`` fail in a copy of the tree, with the mutant's fault or with none."""
    with tempfile.TemporaryDirectory(prefix="ipt_fast_mutant_") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=_LEFT_OUT)
        if mutant is not None:
            path = tree / mutant.file
            path.write_text(path.read_text().replace(mutant.old, mutant.new))
        shared = Path(os.environ.get("IPT_FAST_SHARED", ROOT.parent / "shared")).absolute()
        environment = {**os.environ, "IPT_FAST_SHARED": str(shared), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)  # the copy must be what is imported
        if tests.startswith("tests/kernels"):
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", "pytest", "-x", "-q", *shlex.split(tests)]
        try:
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return True
        return done.returncode != 0


def judge(mutant: Mutant) -> Outcome:
    """Try one mutant."""
    start = time.monotonic()
    path = ROOT / mutant.file
    found = path.read_text().count(mutant.old) if path.is_file() else 0
    if found != 1:
        verdict = f"does not apply: found {found} times" if path.is_file() else "does not apply: no such file"
    else:
        verdict = "caught" if fails(mutant.tests, mutant) else "survived"
    outcome = Outcome(mutant, verdict, time.monotonic() - start)
    print(f"{outcome.verdict:10} {outcome.seconds:4.0f} s  {mutant.file}: {' '.join(mutant.new.split())}", flush=True)
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run the lists and write the report; the exit code is as the module says."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.split("\n")[0])
    parser.add_argument("lists", nargs="*", metavar="LIST", help=f"of {', '.join(lists())} (default: all)")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="mutants at once (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there, as Markdown")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.lists if name not in lists()]:
        parser.error(f"{unknown[0]}: no such list; choose from {', '.join(lists())}")
    mutants = [m for name in args.lists or lists() for m in importlib.import_module(f"tests.mutants.{name}").MUTANTS]
    with ThreadPoolExecutor(args.j) as pool:
        tests = list(dict.fromkeys(mutant.tests for mutant in mutants))
        if broken := [t for t, failed in zip(tests, pool.map(fails, tests), strict=True) if failed]:
            print(f"these fail without any fault, or do not exist: {', '.join(broken)}", file=sys.stderr)
            return 2
        outcomes = list(pool.map(judge, mutants))
    columns = ("file", "old", "new", "tests", "verdict", "s")
    caught = sum(outcome.verdict == "caught" for outcome in outcomes)
    print(f"{caught} of {len(outcomes)} caught")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        table = markdown_table(columns, [outcome.row() for outcome in outcomes], ("s",))
        args.out.write_text(f"# Mutants\n\n{caught} of {len(outcomes)} caught.\n\n{table}")
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
