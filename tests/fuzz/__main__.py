"""``python -m tests.fuzz``: make random calls until the time is up. Exit code 1 where one is at fault."""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ipt_fast.cli.tables import print_table
from tests.fuzz.run import COLUMNS, DOMAINS, FAULT, markdown, one, run, table


def main(argv: Sequence[str] | None = None) -> int:
    """Make the calls, print the faults as they come and the table at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the run; its first call's is a million times it")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no call later than this")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--one", type=int, metavar="SEED", help="make one call again, with the traceback of its fault")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.one is not None:
        outcome = one(args.one)
        print(outcome)
        if outcome.verdict == FAULT:
            rng = random.Random(args.one)
            rng.choices(list(DOMAINS), [share for share, _ in DOMAINS.values()])
            torch.manual_seed(args.one)
            DOMAINS[outcome.domain][1](rng)
        return 0
    outcomes = []
    for outcome in run(args.seed, args.calls, args.seconds, args.jobs):
        outcomes.append(outcome)
        if outcome.verdict == FAULT:
            print(f"--one {outcome.seed}  {outcome.domain}: {outcome.reason}", flush=True)
    print_table(f"{len(outcomes):,} random calls", COLUMNS, table(outcomes), COLUMNS[1:])
    if args.out:
        args.out.write_text(markdown(outcomes, f"python -m tests.fuzz --calls {args.calls} --seed {args.seed}"))
    return 1 if any(o.verdict == FAULT for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
