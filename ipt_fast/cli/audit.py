"""``ipt-fast audit``: whether a checkpoint's activations stay within float16, layer by layer."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ipt_fast.cli import CommandError, check_folder, check_output, user_errors

if TYPE_CHECKING:
    from ipt_fast.evaluation.audit import Audit
    from ipt_fast.model import IPT

WINDOWS = 16
_SHOWN = 15
EXAMPLE = """examples:
  ipt-fast audit IPT_pretrain.pt
  ipt-fast audit runs/base/checkpoint.pt --data photos --windows 64 -o audit.png
runs windows of photos, degraded for every task, through the network in fp32, and prints the largest |x| of every layer
exit codes: 0 fp16 is safe, 1 it is not, 2 wrong usage or input"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast audit``."""
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="released, own or safetensors")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos (default: those packaged with scikit-image)")
    parser.add_argument("--windows", type=int, default=WINDOWS, metavar="N", help=f"for each task (default {WINDOWS})")
    parser.add_argument("--task", help="of a file that holds one task and does not say which")
    parser.add_argument("--num-heads", type=int, metavar="N", help="attention heads, where FILE does not say it")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--all", action="store_true", help=f"print all layers (default: the {_SHOWN} with the largest)")
    parser.add_argument("-o", "--out", type=Path, metavar="PNG", help="draw all layers")
    parser.add_argument("--force", action="store_true", help="overwrite a picture that is there")


def run(args: argparse.Namespace) -> int:
    """Print the table and the verdict; draw where asked."""
    from ipt_fast.cli._network import load_network, pick_device
    from ipt_fast.cli.tables import print_table
    from ipt_fast.evaluation import audit

    if args.windows < 1:
        raise CommandError(f"--windows must be at least 1, got {args.windows}")
    if args.out:
        check_output(args.out, args.force)
        check_folder(args.out, "-o ")
    model = load_network(args.checkpoint, args.task, pick_device(args.device), args.num_heads)
    result = audit_network(model, args.data, args.windows)
    layers = result.layers
    if not args.all:
        layers = sorted(layers, key=lambda layer: (layer.peak == layer.peak, -layer.peak))[:_SHOWN]
    title = f"largest |x|, {len(layers)} of {len(result.layers)} layers, {result.windows} windows a task"
    print_table(title, audit.COLUMNS, [layer.row() for layer in layers], audit.NUMERIC)
    print(result.verdict())
    if args.out:
        with user_errors(OSError, ValueError):
            print(audit.draw_audit(result, args.out, args.checkpoint.name))
    return 0 if result.safe else 1


def audit_network(model: "IPT", data: Path | None = None, windows: int = WINDOWS) -> "Audit":
    """Audit a network on the photos in a folder, or on those that are packaged."""
    from ipt_fast.data.packaged_photos import HELD_OUT, TRAIN, packaged_photos
    from ipt_fast.evaluation.audit import audit, audit_windows
    from ipt_fast.io.images import read_rgb
    from ipt_fast.io.scan import image_files

    with user_errors(OSError, ValueError):
        paths = image_files(data, recursive=True) if data else packaged_photos(TRAIN) + packaged_photos(HELD_OUT)
        if not paths:
            raise CommandError(f"--data {data}: holds no images")
        photos = [read_rgb(path) for path in paths[:: -(-len(paths) // windows)]]  # no more photos than windows
        return audit(model, audit_windows(model.config, photos, windows))
