"""What the commands that run a network have in common: loading it, its device and its precision."""

import argparse
from pathlib import Path
from typing import Any

import torch

from ipt_fast.checkpoint import CheckpointError, load_checkpoint
from ipt_fast.cli import CommandError, user_errors
from ipt_fast.engine.precision import resolve_precision
from ipt_fast.inference.prepare import PreparedIPT, prepare_for_inference
from ipt_fast.model import IPT
from ipt_fast.tasks import Task, get_task


class NoSuchTaskError(CommandError):
    """The checkpoint has neither the task nor one that serves it."""


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_EIGHT_BITS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # of the arithmetic; no file holds them


def add_network_arguments(parser: argparse.ArgumentParser, precision: str) -> argparse._ArgumentGroup:
    """Add options of the way an image goes through a network, and return their group; ``precision`` is the default."""
    group = parser.add_argument_group("how images go through the network")
    add = group.add_argument
    add(
        "--overlap", "--tile-overlap", "--tile_overlap", type=int, default=10, metavar="PX",
        help="least overlap of windows (default 10)",
    )  # fmt: skip
    add(
        "--stitch", choices=("blend", "official"), default="blend",
        help="blend windows (default), or the reference code's stitching, 8 times the work",
    )  # fmt: skip
    add("--self-ensemble", action="store_true", help="mean over 8 flips and transposes, 8 times the work")
    add("--batch-size", type=int, metavar="N", help="windows at once (default: what memory allows)")
    one_of = group.add_mutually_exclusive_group()
    chosen = one_of.add_argument(
        "--precision", choices=("auto", *PRECISIONS, *_EIGHT_BITS), default=precision,
        help=f"of the arithmetic (default {precision}); auto: bf16 where the processor has it, otherwise fp32 or fp16; "
        "int8 (on a CPU) and fp8 (on a GPU of capability 8.9 or newer): linear layers in 8 bits",
    )  # fmt: skip
    for name in [name for name in chosen.choices or () if name != "auto"]:
        one_of.add_argument(
            f"--{name}", dest="precision", action="store_const", const=name, default=argparse.SUPPRESS,
            help=f"short for --precision {name}",
        )  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    add(
        "--max-pixels", type=int, metavar="N", help="refuse images of more (default 178,956,970, against hostile files)"
    )
    return group


def load_network(
    path: Path, task: str | None = None, device: torch.device | str = "cpu", num_heads: int | None = None
) -> IPT:
    """Call ``load_checkpoint`` with its errors as the user's."""
    with user_errors(OSError, CheckpointError, ValueError):
        return load_checkpoint(path, task, num_heads=num_heads).to(device)


def load_for_task(path: Path, task: Task | None, device: torch.device | str) -> tuple[IPT, str, Task]:
    """Return the network of a file, the name of its task that serves ``task``, and ``task``; None is its only one.

    A noise level that the network was not trained on is served by its nearest one (Table 4 of the paper).
    """
    if task is None:
        model = load_network(path, device=device)
        names = model.config.tasks
        if len(names) > 1:
            raise CommandError(f"{path} has the tasks {', '.join(names)}; say which with --task")
        return model, names[0], get_task(names[0])
    try:
        model = load_network(path, device=device)
    except CommandError as error:
        if "give the task" not in str(error):
            raise
        model = load_network(path, task.name, device)
    tasks = model.config.tasks
    if task.name in tasks:
        return model, task.name, task
    levels = [level for level in map(get_task, tasks) if level.kind == "denoise"]
    if task.kind != "denoise" or not levels:
        raise NoSuchTaskError(f"{path}: has no task {task.name}; it has {', '.join(tasks)}")
    return model, min(levels, key=lambda level: abs(level.sigma - task.sigma)).name, task


def pick_task(name: str) -> Task:
    """Return the task of that name."""
    with user_errors(ValueError):
        return get_task(name)


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is cuda where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CommandError(f"--device {name} is not a device; give cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; give cpu")
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device {name} is not supported; give cpu or cuda")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; "auto" is what training takes on the device."""
    known = {**PRECISIONS, **_EIGHT_BITS}
    return known[resolve_precision("auto", device) if name == "auto" else name]


def prepare(path: Path, task: Task | None, args: argparse.Namespace) -> tuple[PreparedIPT, str, Task]:
    """Return what ``load_for_task`` does, prepared as the options of ``add_network_arguments`` ask."""
    device = pick_device(args.device)
    model, name, task = load_for_task(path, task, device)
    size = model.config.patch_size
    if not 0 <= args.overlap < size:
        raise CommandError(f"--overlap must be 0 to {size - 1} for this network, got {args.overlap}")
    if args.batch_size is not None and args.batch_size < 1:
        raise CommandError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.max_pixels is not None and args.max_pixels < 1:
        raise CommandError(f"--max-pixels must be at least 1, got {args.max_pixels}")
    with user_errors(ValueError):
        return prepare_for_inference(model, name, pick_precision(args.precision, device)), name, task


def window_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of ``restore`` that the options of ``add_network_arguments`` give."""
    return {name: getattr(args, name) for name in ("overlap", "stitch", "batch_size", "self_ensemble")}
