"""``ipt-fast config``: a recipe as a YAML file for ``train.py --config``, or the JSON schema of such files."""

import argparse
import json

from ipt_fast.cli import user_errors
from ipt_fast.model import PRESETS, preset

EXAMPLE = """examples:
  ipt-fast config --preset base > base.yaml
  ipt-fast config --preset small --set lr=1e-4 steps=20000 > mine.yaml
  ipt-fast config --finetune sr2 > sr2.yaml
  ipt-fast config --schema > recipe.schema.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast config``."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--preset", choices=PRESETS, default="base", help="network and recipe (default base)")
    what.add_argument("--finetune", metavar="TASK", help="the recipe of fine-tuning, which has no network of its own")
    what.add_argument("--schema", action="store_true", help="the JSON schema by which an editor completes and checks")
    add = parser.add_argument
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change the recipe, as in train.py")


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from ipt_fast.engine.config import apply_changes, finetune_recipe, recipe
    from ipt_fast.engine.recipe_file import recipe_schema, write_recipe

    if args.schema:
        print(json.dumps(recipe_schema(), indent=2))
        return 0
    with user_errors(ValueError):
        if args.finetune:
            config = apply_changes(finetune_recipe(preset("base"), args.finetune), args.set)
        else:
            config = recipe(args.preset, args.set)
    print(write_recipe(config, network=not args.finetune), end="")
    return 0
