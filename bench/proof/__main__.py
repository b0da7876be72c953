"""``python -m bench.proof``: run the stages one after the other, write the report after each.

Exit code: 0 all stages passed, 1 any failed, 2 there is no GPU and ``--cpu`` was not given.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import ROOT
from bench.ceilings import device_name
from bench.proof.report import STAGE_COLUMNS, Outcome, markdown
from bench.proof.run import StageError
from bench.proof.stages import STAGES, Proof, Stage
from bench.results_io import environment
from bench.suite import default_folder
from ipt_fast.cli.tables import print_table

LIMIT = 595.0  # seconds for all stages on a GPU


def run_stages(proof: Proof, stages: Sequence[Stage], limit: float) -> list[Outcome]:
    """Run them all; one that fails stops no other. The last one gets all the time that the others left."""
    end = time.monotonic() + limit
    outcomes: list[Outcome] = []
    machine = environment(proof.device)
    for stage in stages:
        left = end - time.monotonic()
        budget = float(stage.seconds_small if proof.small else stage.seconds)
        budget = left if stage is stages[-1] and not proof.small else min(budget, left)
        print(f"{stage.name}: {stage.what}, up to {budget:.0f} s", flush=True)
        start = time.monotonic()
        try:
            passed, line = True, stage.run(proof, budget)
        except StageError as error:
            passed, line = False, str(error)
        except Exception as error:  # a fault in one stage must not cost the results of the others
            passed, line = False, f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(stage.name, stage.what, passed, time.monotonic() - start, line))
        print(f"  {outcomes[-1].row()[2]} after {outcomes[-1].seconds:.0f} s: {line}", flush=True)
        text = markdown(device_name(proof.device), machine, proof.found, outcomes)
        (proof.folder / "proof.md").write_text(text)
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; the exit code is as the module says."""
    parser = argparse.ArgumentParser(prog="bench/gpu_proof.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="all of it small on the CPU: does the proof itself work?")
    parser.add_argument("--only", action="append", choices=[s.name for s in STAGES], help="this stage; repeatable")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: bench/results/<device>; --cpu: runs/proof")
    args = parser.parse_args(argv)
    if not args.cpu and not torch.cuda.is_available():
        print("gpu_proof: torch finds no CUDA device; --cpu tries the proof itself in small", file=sys.stderr)
        return 2
    device = torch.device("cpu" if args.cpu else "cuda")
    folder = (args.out or (ROOT / "runs" / "proof" if args.cpu else default_folder(device))).absolute()
    proof = Proof(device, folder, small=args.cpu)
    try:
        outcomes = run_stages(proof, [s for s in STAGES if args.only is None or s.name in args.only], LIMIT)
    finally:
        proof.close()
    rows = [o.row() for o in outcomes]
    print_table(f"proof on {device_name(device)}", STAGE_COLUMNS, rows, ("s",))
    failed = [o.name for o in outcomes if not o.passed]
    print(f"written: {folder}; " + (f"failed: {', '.join(failed)}" if failed else "all passed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
