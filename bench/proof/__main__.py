"""``python -m bench.proof [correctness|speed]``: run the stages of a part, or of both; the page is written after each.

Exit code: 0 all stages passed, 1 any failed, 2 there is no GPU and ``--cpu`` was not given.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench import ROOT
from bench.ceilings import device_name
from bench.proof.parts import LIMIT, PARTS
from bench.proof.report import STAGE_COLUMNS, Outcome, Page, write_page
from bench.proof.run import StageError
from bench.proof.stages import Proof, Stage
from bench.results_io import environment, read_run
from bench.suite import default_folder
from ipt_fast.cli.tables import print_table


def run_stages(proof: Proof, stages: Sequence[Stage], limit: float, part: str = "correctness") -> list[Outcome]:
    """Run them all; one that fails stops no other. The last one gets all the time that the others left."""
    end = time.monotonic() + limit
    outcomes: list[Outcome] = []
    before = read_outcomes(proof)
    for stage in stages:
        left = end - time.monotonic()
        budget = float(stage.seconds_small if proof.small else stage.seconds)
        budget = left if stage is stages[-1] and not proof.small else min(budget, left)
        print(f"{stage.name}: {stage.what} Up to {budget:.0f} s", flush=True)
        start = time.monotonic()
        try:
            passed, line = True, stage.run(proof, budget) if budget > 0 else "not run: no time was left"
        except StageError as error:
            passed, line = False, str(error)
        except Exception as error:  # a fault in one stage must not cost the results of the others
            passed, line = False, f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(stage.name, stage.what, passed, time.monotonic() - start, line))
        print(f"  {outcomes[-1].answer} after {outcomes[-1].seconds:.0f} s: {line}", flush=True)
        before[part] = [o for o in before.get(part, []) if o.name != stage.name] + [outcomes[-1]]
        write(proof, before)
    return outcomes


def read_outcomes(proof: Proof) -> dict[str, list[Outcome]]:
    """Return what earlier commands left in the folder, and take up what they found."""
    path = proof.folder / "proof.json"
    content = json.loads(path.read_text()) if path.exists() else {"parts": {}, "found": {}}
    for key, value in content["found"].items():
        proof.found.setdefault(key, value)
    return {part: [Outcome(**o) for o in outcomes] for part, outcomes in content["parts"].items()}


def write(proof: Proof, outcomes: dict[str, list[Outcome]]) -> None:
    """Write proof.json and the page, in the order of the parts' stages."""
    parts = {part: _in_order(outcomes.get(part, []), stages) for part, stages in PARTS.items()}
    listed = {part: [asdict(o) for o in each] for part, each in parts.items()}
    (proof.folder / "proof.json").write_text(json.dumps({"parts": listed, "found": proof.found}, indent=1) + "\n")
    run = read_run(proof.folder) if (proof.folder / "results.json").exists() else None
    write_page(Page(device_name(proof.device), environment(proof.device), parts, proof.found, run), proof.folder)


def _in_order(outcomes: list[Outcome], stages: Sequence[Stage]) -> list[Outcome]:
    names = [stage.name for stage in stages]
    return sorted(outcomes, key=lambda o: names.index(o.name) if o.name in names else len(names))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; the exit code is as the module says."""
    names = [stage.name for stages in PARTS.values() for stage in stages]
    parser = argparse.ArgumentParser(prog="bench/gpu_proof.sh", description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="?", choices=PARTS, help="ten minutes each; both, one after the other, without")
    parser.add_argument("--cpu", action="store_true", help="all of it small on the CPU: does the proof itself work?")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="STAGE", help=f"one of {', '.join(names)}; repeatable"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: bench/results/<device>; --cpu: runs/proof")
    args = parser.parse_args(argv)
    if not args.cpu and not torch.cuda.is_available():
        print("gpu_proof: torch finds no CUDA device; --cpu tries the proof itself in small", file=sys.stderr)
        return 2
    device = torch.device("cpu" if args.cpu else "cuda")
    folder = (args.out or (ROOT / "runs" / "proof" if args.cpu else default_folder(device))).absolute()
    proof = Proof(device, folder, small=args.cpu)
    outcomes: list[Outcome] = []
    try:
        for part, stages in PARTS.items():
            chosen = [s for s in stages if args.only is None or s.name in args.only]
            if args.part in (None, part) and chosen:
                outcomes += run_stages(proof, chosen, LIMIT, part)
    finally:
        proof.close()
    if not outcomes:
        print(f"gpu_proof: --only {' '.join(args.only)}: not in the part {args.part!r}", file=sys.stderr)
        return 2
    print_table(f"proof on {device_name(device)}", STAGE_COLUMNS, [o.row() for o in outcomes], ("s",))
    failed = [o.name for o in outcomes if not o.passed]
    print(f"written: {folder / 'proof.md'}; " + (f"failed: {', '.join(failed)}" if failed else "all passed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
