"""``ipt-fast punish``: kill the ranks of a training over and over, and compare its weights with an undisturbed run."""

import argparse
import json
import shlex
from pathlib import Path

from ipt_fast.checkpoint import LATEST, CheckpointError
from ipt_fast.cli import CommandError, check_folder, user_errors
from ipt_fast.cli.tables import markdown_table
from ipt_fast.io.atomic import atomic_write

EXAMPLE = """example, log_every=1 so that steps are counted one by one:
  ipt-fast punish --kills 20 -- torchrun --standalone --nproc_per_node=2 train.py --data DIR --preset tiny \\
      --out runs/punished --set log_every=1 checkpoint_every=5"""
_COLUMNS = ("kill", "way", "rank", "step reached", "checkpoint in flight", "goes on from", "steps lost", "exit code")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast punish``."""
    add = parser.add_argument
    add("--kills", type=int, default=20, metavar="N", help="kills, spread over the run (default 20)")
    add("--seed", type=int, default=0, metavar="S", help="of steps, ways and ranks (default 0)")
    add(
        "--reference",
        type=Path,
        metavar="DIR",
        help="the same run undisturbed (default: run first, in OUT-undisturbed)",
    )
    add("--report", type=Path, metavar="FILE", help="also write table and verdict as Markdown")
    add("command", nargs="+", metavar="COMMAND", help="train.py with --out, or torchrun with it, after --")


def run(args: argparse.Namespace) -> int:
    """Punish; returns 0 where the weights are equal bit for bit, else 1."""
    try:
        from ipt_fast.engine import punish
    except ModuleNotFoundError as error:
        raise CommandError(f'{error.name} is not installed: pip install "ipt-fast[train]"') from error
    if args.kills < 1:
        raise CommandError(f"--kills must be at least 1 (got {args.kills})")
    if args.report:
        check_folder(args.report, "--report ")
    with user_errors(punish.PunishError, OSError, CheckpointError):
        command, out = punish.split_command(args.command)
        if (out / LATEST).exists():
            raise CommandError(f"{out} holds a run already; choose another --out")
        log = out.with_name(f"{out.name}-punish.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        reference = args.reference or out.with_name(f"{out.name}-undisturbed")
        if args.reference is None:
            if (reference / LATEST).exists():
                raise CommandError(f"{reference} holds a run already; --reference {reference} compares with it")
            punish.undisturbed(punish.split_command(args.command, reference)[0], reference, log)
        settings = json.loads((reference / "config.json").read_text(encoding="utf-8"))
        rows: list[tuple[str, ...]] = []

        def tell(kill: punish.Kill) -> None:
            lost = kill.step - (kill.resumed or 0)
            code = "lives on" if kill.code is None else kill.code
            row = (
                len(rows) + 1,
                kill.way,
                kill.rank,
                kill.step,
                "yes" if kill.in_flight else "no",
                kill.resumed,
                lost,
                code,
            )
            rows.append(tuple(map(str, row)))
            print(_line(rows[-1]), flush=True)

        print(_line(_COLUMNS), flush=True)
        total, every = settings["run"]["total_steps"], settings["config"]["checkpoint_every"]
        punish.disturb(command, out, log, steps=total, every=every, kills=args.kills, seed=args.seed, tell=tell)
        differing, compared = punish.differences(out, reference)
    lost = [int(row[6]) for row in rows]
    said = [f"{len(rows)} of {args.kills} kills in a run of {total} steps, a checkpoint every {every}"]
    said += [f"steps lost and done again: {sum(lost)}, at most {max(lost)} after a kill"] if rows else []
    if differing:
        said += [
            f"weights and optimizer DIFFER from {reference} in {len(differing)} of {compared}: {differing[0]}, ..."
        ]
    else:
        said += [f"weights and optimizer equal those of the undisturbed run, bit for bit ({compared} compared)"]
    print("\n".join(said))
    if args.report:
        with atomic_write(args.report, "w") as file:
            file.write(_markdown(args, rows, said))
    return 0 if rows and not differing else 1


def _line(row: tuple[str, ...]) -> str:
    widths = (max(len(title), 23 if title == "way" else 5) for title in _COLUMNS)
    return "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _markdown(args: argparse.Namespace, rows: list[tuple[str, ...]], said: list[str]) -> str:
    lines = ["# A training that is killed over and over", "", *(f"- {line}." for line in said), ""]
    lines += [f"`ipt-fast punish --kills {args.kills} --seed {args.seed} -- {shlex.join(args.command)}`", ""]
    return "\n".join(lines) + "\n" + markdown_table(_COLUMNS, rows, [name for name in _COLUMNS if name != "way"])
