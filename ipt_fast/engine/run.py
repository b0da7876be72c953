"""``train.py``: arguments to a run, and a run to an exit code.

Exit codes: 0 the run is done (or ``--dry-run``), 1 it diverged, 2 wrong usage or input, 130 stopped by Ctrl-C and
143 by SIGTERM, both after a checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from ipt_fast.data import CropLoader, ImageIndex, build_index, make_loader
from ipt_fast.engine.checkpoint import LATEST, CheckpointError
from ipt_fast.engine.config import ConfigError, TrainConfig, recipe
from ipt_fast.engine.distributed import World, join_world, leave_world
from ipt_fast.engine.precision import resolve_precision
from ipt_fast.engine.schedule import total_steps
from ipt_fast.engine.trainer import DivergedError, Trainer, check_batch
from ipt_fast.model import IPT, PRESETS
from ipt_fast.tasks import get_task

EXAMPLE = """examples:
  python train.py --data photos --preset tiny --out runs/tiny
  python train.py --data imagenet/train --preset base --out runs/base --resume auto
  python train.py --data photos more/photos --preset small --out runs/sr --tasks sr2 sr3 --set lr=1e-4 steps=20000
  torchrun --nproc_per_node=8 train.py --data imagenet/train --preset base --out runs/base --resume auto"""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of ``train.py``."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Pre-train an image processing transformer on a folder of photos.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", nargs="+", type=Path, required=True, metavar="DIR", help="folders (or tar shards) of clean photos")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run: checkpoint, config, logs")
    add("--preset", default="base", choices=PRESETS, help="network and recipe (default base, the paper's)")
    add("--resume", metavar="auto|FILE", help="go on from a checkpoint; auto: the newest in --out, if there is one")
    add("--init", type=Path, metavar="FILE", help="start from the weights of a checkpoint, ours or the released ones")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change the recipe, as in lr=1e-4")
    add("--tasks", nargs="+", metavar="TASK", help="tasks to train (default: those of the preset)")
    add("--loader", choices=("auto", "dali", "torch"), help="what decodes the photos (default auto)")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="of forward and backward (default auto)")
    add("--crops-per-image", type=int, metavar="K", help="crops from each decoded photo (default 1)")
    add("--workers", type=int, metavar="N", help="loader processes or threads a rank (default: as many as cores)")
    add("--data-fraction", type=float, metavar="F", help="train on a fixed share of the photos, as in Figure 6")
    add("--profile", type=int, default=0, metavar="N", help="write a trace of N steps for Perfetto, one a rank")
    add("--dry-run", action="store_true", help="check everything, print what would be done, and end")
    return parser.parse_args(argv)


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The recipe of the preset with the changes of the command line; ``--set`` has the last word."""
    changes = [f"model.tasks={','.join(args.tasks)}"] if args.tasks else []
    for name in ("loader", "precision", "crops_per_image", "workers", "data_fraction"):
        value = getattr(args, name)
        if value is not None:
            changes.append(f"{name}={value}")
    return recipe(args.preset, [*changes, *args.set])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``train.py``; returns the exit code."""
    args = parse(argv)
    console = Console(stderr=True, highlight=False)
    try:
        world = join_world()
    except RuntimeError as error:
        console.print(f"train.py: {error}", markup=False, soft_wrap=True)
        return 2
    try:
        trainer = _prepare(args, world, console)
        if trainer is None:
            return 0
    except (ValueError, OSError, CheckpointError, ModuleNotFoundError) as error:
        if world.main:
            console.print(f"train.py: {error}", markup=False, soft_wrap=True)
        leave_world()
        return 2
    except KeyboardInterrupt:
        return 130
    try:
        summary = trainer.train()
    except DivergedError as error:
        if world.main:
            console.print(f"train.py: {error}", markup=False, soft_wrap=True)
        return 1
    finally:
        leave_world()
    return 0 if summary.signal is None else 128 + summary.signal


def _prepare(args: argparse.Namespace, world: World, console: Console) -> Trainer | None:
    """Everything up to the first step; None for a dry run."""
    config = config_of(args)
    check_batch(config, world.size)
    resolve_precision(config.precision, world.device)
    for task in map(get_task, config.model.tasks):
        if task.kind == "deblur":
            raise ConfigError(f"task {task.name}: there is no synthetic blur; train it on pairs of photos (--finetune)")
    if args.resume is None and not args.dry_run and (args.out / LATEST).exists():
        raise ConfigError(
            f"{args.out} holds a run already; give --resume auto to go on with it, or another folder with --out"
        )
    index = _index(args.data, config, world)
    loader = make_loader(
        index,
        loader=config.loader,
        tasks=config.model.tasks,
        batch_size=config.batch_size // world.size,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
        patch_size=config.model.patch_size,
        crops_per_image=config.crops_per_image,
        workers=config.workers,
        prefetch=config.prefetch,
        data_fraction=config.data_fraction,
    )
    if args.dry_run:
        if world.main:
            Console(highlight=False).print(_plan(config, index, loader, world))
        loader.close()
        leave_world()
        return None
    model = None if args.init is None else _initial_model(args.init, config)
    trainer = Trainer(config, loader, args.out, world=world, model=model, console=console, profile_steps=args.profile)
    if args.resume is not None:
        trainer.resume(args.resume)
    trainer.progress.say(f"{len(index.usable)} photos, {len(index.refused)} refused; {loader.about}")
    return trainer


def _index(folders: Sequence[Path], config: TrainConfig, world: World) -> ImageIndex:
    """Rank 0 checks the photos and writes the index file; the others read it after that."""
    if not world.main:
        dist.barrier()
    index = build_index(folders, min_size=config.model.patch_size, progress=world.main and sys.stderr.isatty())
    if world.main and world.size > 1:
        dist.barrier()
    return index


def _initial_model(path: Path, config: TrainConfig) -> IPT:
    from ipt_fast.inference import load_checkpoint

    model = load_checkpoint(path)
    if model.config != config.model:
        theirs, ours = model.config.to_dict(), config.model.to_dict()
        differing = [f"{key} is {theirs[key]!r}, needed {ours[key]!r}" for key in ours if theirs[key] != ours[key]]
        raise ConfigError(f"--init {path}: another network: {'; '.join(differing)}")
    return model


def _plan(config: TrainConfig, index: ImageIndex, loader: CropLoader, world: World) -> Table:
    """What a run would do, for ``--dry-run``."""
    with torch.device("meta"):
        values = sum(p.numel() for p in IPT(config.model).parameters())
    steps = total_steps(config, loader.batches_per_epoch)
    table = Table(title="dry run: nothing is trained or written but the image index", title_justify="left")
    table.add_column("setting")
    table.add_column("value", overflow="fold")
    rows = {
        "photos": f"{len(index.usable)} usable, {len(index.refused)} refused",
        "loader": loader.about,
        "network": f"{config.preset}, {values:,} values",
        "device": f"{world.device}, {world.size} rank(s), {resolve_precision(config.precision, world.device)}",
        "length": f"{steps:,} steps of {config.batch_size} patches, {loader.batches_per_epoch:,} steps an epoch",
        "memory": f"{16 * values / 2**30:.2f} GiB for weights, gradients and Adam; activations come on top",
    }
    settings = config.to_dict()
    network = settings.pop("model")
    for name in ("preset", "precision", "batch_size", "loader"):
        settings.pop(name)
    rows |= {name: str(value) for name, value in settings.items()}
    rows |= {f"model.{name}": str(value) for name, value in network.items()}
    for name, value in rows.items():
        table.add_row(name, value)
    return table
