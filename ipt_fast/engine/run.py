"""``train.py``: arguments to a run, and a run to an exit code."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from ipt_fast.checkpoint import LATEST, CheckpointError, keep_one_task, load_checkpoint
from ipt_fast.data import CropLoader, build_index, make_loader, make_pair_loader
from ipt_fast.engine.config import (
    ConfigError,
    TrainConfig,
    apply_changes,
    finetune_recipe,
    recipe,
    settings_help,
    total_steps,
)
from ipt_fast.engine.contradictions import check, warn
from ipt_fast.engine.distributed import DistInfo, destroy_process_group, init_distributed
from ipt_fast.engine.flops import peak_flops, step_flops
from ipt_fast.engine.memory import warn_of_memory
from ipt_fast.engine.metrics import import_wandb
from ipt_fast.engine.precision import resolve
from ipt_fast.engine.recipe_file import read_changes
from ipt_fast.engine.terminal import show_logs
from ipt_fast.engine.trainer import DivergedError, LoaderError, NotSavedError, Trainer
from ipt_fast.engine.watch import Watch
from ipt_fast.io.signals import exit_code, sigterm_raises, stop_line
from ipt_fast.model import IPT, PRESETS

_EXIT_CODES = {DivergedError: 1, NotSavedError: 3, LoaderError: 4}
_log = logging.getLogger(__name__)

EXIT_CODES = """exit codes:
  0 done, or --dry-run   1 diverged   2 wrong usage or input   3 the last checkpoint could not be written
  4 the loader failed (a worker was killed), or another rank has left the run   130 Ctrl-C   143 SIGTERM
The last three after a checkpoint; only where the loader of another rank than 0 fails, it is the last one due."""
EXAMPLE = """examples:
  python train.py --data photos --preset tiny --out runs/tiny
  python train.py --data imagenet/train --preset base --out runs/base --resume auto
  python train.py --data photos more/photos --preset small --out runs/sr --tasks sr2 sr3 --set lr=1e-4 steps=20000
  python train.py --finetune denoise70 --init runs/base/checkpoint.pt --data photos --out runs/denoise70
  python train.py --finetune deblur --init runs/base/checkpoint.pt --pairs GoPro/sharp GoPro/blur --out runs/deblur
  torchrun --nproc_per_node=8 train.py --data imagenet/train --preset base --out runs/base --resume auto"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that pre-training and fine-tuning share."""
    add = parser.add_argument_group("what is trained").add_argument
    add("--data", nargs="+", type=Path, metavar="DIR", help="folders (or tar shards) of clean photos")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run: checkpoint, config, logs")
    add("--resume", metavar="auto|FILE", help="go on from a checkpoint; auto: the newest in --out, if there is one")
    add("--init", type=Path, metavar="FILE", help="start from the weights of a checkpoint, ours or the released ones")
    add("--pairs", nargs=2, type=Path, metavar=("GT", "LQ"), help="fine-tune on pairs: clean and degraded photos")
    add("--val", nargs="+", type=Path, metavar="DIR", help="photos held out: PSNR at each checkpoint, best.pt is kept")
    add = parser.add_argument_group("recipe").add_argument
    add("--config", type=Path, metavar="FILE", help="settings from a YAML file (ipt-fast config); --set changes them")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change the recipe, as in lr=1e-4")
    for name, kind in (("epochs", float), ("steps", int), ("batch-size", int), ("lr", float)):
        add(f"--{name}", type=kind, metavar="N", help=f"as --set {name.replace('-', '_')}=N")
    add = parser.add_argument_group("this machine").add_argument
    add("--loader", choices=("auto", "dali", "torch"), help="what decodes the photos (default auto)")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="of forward and backward (default auto)")
    add("--crops-per-image", type=int, metavar="K", help="crops from each decoded photo (default 1)")
    add("--workers", type=int, metavar="N", help="loader processes or threads a rank (default: as many as cores)")
    add("--data-fraction", type=float, metavar="F", help="train on a fixed share of the photos, as in Figure 6")
    add("--profile", type=int, default=0, metavar="N", help="write a trace of N steps for Perfetto, one a rank")
    add("--nvtx", action="store_true", help="mark the parts of a step as NVTX ranges, for nsys profile -t cuda,nvtx")
    add("--memory-snapshot", type=int, default=0, metavar="N", help="write the GPU's allocations of the first N steps")
    add("--dry-run", action="store_true", help="check everything, print what would be done, and end")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``train.py``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Pre-train an image processing transformer on a folder of photos, or fine-tune one (--finetune).",
        epilog=f"{EXAMPLE}\n{EXIT_CODES}\n\n{settings_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add = parser.add_argument_group("network and tasks").add_argument
    add("--preset", choices=PRESETS, help="network and recipe (default base, the paper's)")
    add("--tasks", nargs="+", metavar="TASK", help="tasks to train (default: those of the preset)")
    add("--finetune", metavar="TASK", help="train one task from --init: sr2, derain, denoise70, deblur (--pairs), ...")
    return run(parser.parse_args(argv), "train.py")


def check_usage(args: argparse.Namespace) -> None:
    """Refuse options that need or exclude each other.

    Raises:
        ConfigError: they do not go together.
    """
    if args.val and len(args.val) != (2 if args.pairs else 1):
        raise ConfigError("--val takes a folder of clean photos, or with --pairs two: GT LQ")
    if same := {path.resolve() for path in args.val or ()} & {path.resolve() for path in args.data or args.pairs or ()}:
        raise ConfigError(f"--val {same.pop()}: these photos are trained on; hold others out")
    if args.finetune is None:
        if args.pairs:
            raise ConfigError(
                "--pairs is for fine-tuning: name the task with --finetune, or give clean photos with --data"
            )
        if not args.data:
            raise ConfigError("--data is missing: give a folder of photos")
        if args.init and args.resume not in (None, "auto"):
            raise ConfigError("--init starts a run and --resume FILE goes on with one; give one of them")
        return
    if args.init is None:
        raise ConfigError("--finetune starts from a trained network: give its checkpoint with --init")
    if bool(args.data) == bool(args.pairs):
        raise ConfigError("--finetune needs either --data (clean photos, degraded here) or --pairs GT LQ")
    if args.preset or args.tasks:
        raise ConfigError(
            "--finetune takes network and task from --init and --finetune; leave --preset and --tasks out"
        )
    if given := [change for change in args.set if change.strip().startswith("model.")]:
        raise ConfigError(f"--set {given[0]}: fine-tuning takes the network as it is in --init")


def changes_of(args: argparse.Namespace) -> list[str]:
    """Return all changes of the recipe that the command line asks for, as KEY=VALUE; those of ``--set`` come last."""
    changes = [f"model.tasks={','.join(args.tasks)}"] if args.tasks else []
    named = ["epochs", "steps", "batch_size", "lr", "loader", "precision", "workers", "crops_per_image"]
    changes += [f"{name}={value}" for name in (*named, "data_fraction") if (value := getattr(args, name)) is not None]
    return changes + args.set


def run(args: argparse.Namespace, program: str) -> int:
    """Train as the parsed command line says, with the log on stderr. Returns the exit code.

    Args:
        args: of a parser with the options of ``add_arguments``.
        program: its name, in front of messages.
    """
    console = Console(stderr=True, highlight=False)

    def print_error(error: Exception) -> None:
        console.print(f"{program}: {error}", markup=False, soft_wrap=True)

    try:
        dist_info = init_distributed()
    except RuntimeError as error:
        print_error(error)
        return 2
    try:
        with show_logs(console, dist_info.is_main), sigterm_raises():
            trainer = _prepare(args, dist_info, console)
            if trainer is None:
                return 0
            summary = trainer.train()
    except (DivergedError, NotSavedError, LoaderError) as error:
        # A loader fails on one rank alone, so that each speaks for itself.
        if dist_info.is_main or isinstance(error, LoaderError):
            print_error(error)
        return _EXIT_CODES[type(error)]
    except (ValueError, OSError, CheckpointError, ModuleNotFoundError) as error:
        if dist_info.is_main:
            print_error(error)
        return 2
    except KeyboardInterrupt as stop:  # before the first step, or Ctrl-C again: no checkpoint of this moment
        if dist_info.is_main:
            console.print(f"{program}: {stop_line(stop)}", markup=False, soft_wrap=True)
        return exit_code(stop)
    finally:
        destroy_process_group()
    return 0 if summary.signal is None else 128 + summary.signal


def _prepare(args: argparse.Namespace, dist_info: DistInfo, console: Console) -> Trainer | None:
    """Do everything up to the first step; returns None for a dry run."""
    check_usage(args)
    initial = None if args.init is None else load_checkpoint(args.init)
    name, settings = read_changes(args.config) if args.config else (None, [])
    if args.finetune and (name or any(setting.startswith("model.") for setting in settings)):
        raise ConfigError(
            f"{args.config}: fine-tuning takes the network as it is in --init; leave preset and model out"
        )
    changes = settings + changes_of(args)
    if initial is not None and args.finetune:
        config = apply_changes(finetune_recipe(initial.config, args.finetune), changes)
    else:
        config = recipe(args.preset or name or "base", changes)
    given = {change.partition("=")[0].strip() for change in changes_of(args)}  # a file names all settings
    check(config, dist_info.world_size, pairs=bool(args.pairs), given=given)
    resolve(config, dist_info)
    watch = Watch(args.profile, args.memory_snapshot, args.nvtx)
    watch.check(dist_info.device)
    if config.wandb:
        import_wandb(config.wandb)
    if args.resume is None and not args.dry_run and (args.out / LATEST).exists():
        raise ConfigError(
            f"{args.out} holds a run already; give --resume auto to go on with it, or another folder with --out"
        )
    if args.resume not in (None, "auto") and not Path(args.resume).is_file():
        raise FileNotFoundError(f"{args.resume}: no such checkpoint")
    validate = None
    if args.val and dist_info.is_main:
        from ipt_fast.evaluation.validation import Validation

        validate = Validation(args.val, config.model.tasks)
    loader, photos = _loader(args, config, dist_info)
    photos += f", {len(validate)} held out for validation" if validate else ""
    if args.dry_run:
        steps_per_epoch = loader.batches_per_epoch
        warn(config, total_steps(config, steps_per_epoch), steps_per_epoch, given)
        if dist_info.is_main:
            Console(markup=False, emoji=False, highlight=False).print(_dry_run_table(config, photos, loader, dist_info))
        loader.close()
        return None
    model, start = _initial_model(args, config, initial)
    trainer = Trainer(
        config, loader, args.out, dist_info=dist_info, model=model, console=console, watch=watch, given=given,
        validate=validate,
    )  # fmt: skip
    resumed = args.resume is not None and trainer.resume(args.resume)
    _log.info("%s; %s%s", photos, loader.description, "" if resumed else start)
    return trainer


def _loader(args: argparse.Namespace, config: TrainConfig, dist_info: DistInfo) -> tuple[CropLoader, str]:
    """Return the loader and what it reads. Rank 0 checks the photos and writes the index; then the others read it."""
    ranks, patch_size = dist_info.world_size, config.model.patch_size
    names = ("seed", "crops_per_image", "workers", "prefetch", "data_fraction")
    shared: dict[str, Any] = {name: getattr(config, name) for name in names}
    shared |= {"batch_size": config.batch_size // ranks, "rank": dist_info.rank, "world_size": ranks}
    shared["patch_size"] = patch_size
    progress = dist_info.is_main and sys.stderr.isatty()
    if not dist_info.is_main:
        dist.barrier()
    if args.pairs:
        clean, degraded = args.pairs
        loader: CropLoader = make_pair_loader(clean, degraded, args.finetune, progress=progress, **shared)
        photos = f"pairs of {clean} and {degraded}"
    else:
        index = build_index(args.data, min_size=patch_size, progress=progress)
        loader = make_loader(index, loader=config.loader, tasks=config.model.tasks, **shared)
        photos = f"{len(index.usable)} photos, {len(index.refused)} refused"
    if dist_info.is_main and ranks > 1:
        dist.barrier()
    return loader, photos


def _initial_model(args: argparse.Namespace, config: TrainConfig, initial: IPT | None) -> tuple[IPT | None, str]:
    """Return the network to start from, and a word on where its parts come from."""
    if initial is None:
        return None, ""
    if args.finetune:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model, source = keep_one_task(initial, args.finetune)
        return model, f"; starts from {source} of {args.init}"
    if initial.config != config.model:
        theirs, ours = initial.config.to_dict(), config.model.to_dict()
        differing = [f"{key} is {theirs[key]!r}, needed {ours[key]!r}" for key in ours if theirs[key] != ours[key]]
        raise ConfigError(f"--init {args.init}: another network: {'; '.join(differing)}")
    return initial, f"; starts from {args.init}"


def _work(config: TrainConfig, precision: str, dist_info: DistInfo) -> str:
    """Return the FLOPs of a step, and what the device's peak allows."""
    each = [step_flops(config.model, task, 1) for task in config.model.tasks]
    patch = sum(each) / len(each)
    said = f"{patch / 1e9:.3g} GFLOP a patch, {patch * config.batch_size / 1e12:.3g} TFLOP a step"
    peak = peak_flops(config, precision, dist_info.device)
    if peak is None:
        return f"{said}; no peak is known for this device, so no MFU: state it with --set peak_tflops=N"
    ranks = f", {dist_info.world_size} ranks" if dist_info.world_size > 1 else ""
    return (
        f"{said}; peak {peak / 1e12:.4g} TFLOP/s{ranks}: at most {peak * dist_info.world_size / patch:,.0f} patches/s"
    )


def _dry_run_table(config: TrainConfig, photos: str, loader: CropLoader, dist_info: DistInfo) -> Table:
    """Return what a run would do."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in IPT(config.model).parameters())
    precision, recompute = resolve(config, dist_info)
    steps = total_steps(config, loader.batches_per_epoch)
    rows = {
        "photos": photos,
        "loader": loader.description,
        "network": f"{config.preset}, {parameters:,} parameters",
        "device": f"{dist_info.device}, {dist_info.world_size} rank(s), {precision}",
        "length": f"{steps:,} steps of {config.batch_size} patches, {loader.batches_per_epoch:,} steps an epoch",
        "memory": str(warn_of_memory(config, dist_info)),
        "work": _work(config, precision, dist_info),
        "activation recomputation": "on" if recompute else "off",
    }
    settings = config.to_dict()
    settings |= {f"model.{name}": value for name, value in settings.pop("model").items()}
    table = Table(title="dry run: nothing is trained or written but the image index", title_justify="left")
    table.add_column("setting")
    table.add_column("value", overflow="fold")
    said = {"preset", "precision", "batch_size", "loader", "recompute"}
    rows |= {name: str(value) for name, value in settings.items() if name not in said}
    for name, value in rows.items():
        table.add_row(name, value)
    return table
