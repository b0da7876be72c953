"""``ipt-fast visualize``: pictures of what a checkpoint's embeddings have learnt."""

import argparse
import sys
from pathlib import Path

from ipt_fast.cli import CommandError, check_output, user_errors

EXAMPLE = """examples:
  ipt-fast visualize IPT_pretrain.pt -o pictures
  ipt-fast visualize runs/tiny/checkpoint.pt -o runs/tiny
writes position_embedding.png (as the paper's Figure 7) and task_embedding.png (as its Figure 9)
exit codes: 0 written, 2 wrong usage or input, or a network without these embeddings"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast visualize``."""
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="released, own or safetensors")
    parser.add_argument("-o", "--out", type=Path, default=Path("."), metavar="DIR", help="folder (default: this one)")
    parser.add_argument("--task", help="of a file that holds one task and does not say which")
    parser.add_argument("--force", action="store_true", help="overwrite pictures that are there")


def run(args: argparse.Namespace) -> int:
    """Draw both pictures, or the one that the network has an embedding for."""
    from ipt_fast.cli._network import load_network
    from ipt_fast.evaluation.visualization import NothingToDrawError, draw_positions, draw_tasks

    pictures = {args.out / "position_embedding.png": draw_positions, args.out / "task_embedding.png": draw_tasks}
    if args.out.exists() and not args.out.is_dir():
        raise CommandError(f"-o {args.out} is a file; give a folder")
    for path in pictures:
        check_output(path, args.force)
    model = load_network(args.checkpoint, args.task)
    missing, written = [], []
    for path, draw in pictures.items():
        try:
            with user_errors(OSError):
                args.out.mkdir(parents=True, exist_ok=True)
                written.append(draw(model, path))
        except NothingToDrawError as error:
            missing.append(str(error))
    if not written:
        raise CommandError(f"{args.checkpoint}: {'; '.join(dict.fromkeys(missing))}")
    for path in written:
        print(path)
    for reason in missing:
        print(f"ipt-fast visualize: {args.checkpoint}: {reason}", file=sys.stderr)
    return 0
