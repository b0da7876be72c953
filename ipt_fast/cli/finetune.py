"""``ipt-fast finetune``: ``train.py --finetune`` under the name of the commands."""

import argparse

from ipt_fast.engine.config import settings_help
from ipt_fast.engine.run import EXIT_CODES
from ipt_fast.engine.run import add_arguments as add_training_arguments
from ipt_fast.engine.run import run as train

EXAMPLE = f"""examples:
  ipt-fast finetune denoise70 --init runs/tiny/checkpoint.pt --data photos --out runs/denoise70
  ipt-fast finetune deblur --init IPT_pretrain.pt --pairs GoPro/sharp GoPro/blur --out runs/deblur
  ipt-fast finetune sr4 --init IPT_pretrain.pt --data photos --out runs/sr4 --set epochs=10 lr=1e-5
{EXIT_CODES}

{settings_help()}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast finetune``."""
    parser.add_argument("finetune", metavar="TASK", help="sr2, sr3, sr4, derain, denoise<sigma>, deblur")
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Fine-tune; the exit codes of ``train.py``."""
    args.preset = args.tasks = None
    return train(args, "ipt-fast finetune")
