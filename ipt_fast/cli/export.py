"""``ipt-fast export``: one task's network as a program for torch.export or ONNX runtimes."""

import argparse
import sys
from pathlib import Path

from ipt_fast.cli import CommandError, check_folder, check_output, user_errors

EXAMPLE = """examples:
  ipt-fast export IPT_pretrain.pt --task sr2 -o IPT_sr2.onnx
  ipt-fast export runs/tiny/checkpoint.pt --task denoise50 -o denoise50.pt2
  ipt-fast export IPT_pretrain.pt --task sr2 -o IPT_sr2_fp16.onnx --range 1 --precision fp16
the program takes windows [B, 3, 48, 48], RGB, any B; it is run and compared with the network here, and says in its
metadata what it takes: task, scale, window, range, dtype, config
ONNX needs: pip install 'ipt-fast[export]'
exit codes: 0 written and equal, 1 the program does not compute what the network does, 2 wrong usage or input"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast export``."""
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="released, own or safetensors")
    parser.add_argument(
        "--task", help="one of the network's tasks, or denoise<sigma> (default: that of a file with one)"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="NAME.onnx or NAME.pt2")
    parser.add_argument("--range", type=int, choices=(255, 1), default=255, help="pixels are 0..255 (default) or 0..1")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of weights and pixels (default fp32)"
    )
    parser.add_argument("--keep-ops", action="store_true", help="leave the fused ops as nodes (.pt2 alone)")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")


def run(args: argparse.Namespace) -> int:
    """Export and compare."""
    import torch

    from ipt_fast.cli._network import load_for_task, pick_task
    from ipt_fast.inference.export import SUFFIXES, ExportError, export_network, onnx_missing

    if args.out.suffix.lower() not in SUFFIXES:
        raise CommandError(f"-o {args.out}: give it a name that ends in {' or '.join(SUFFIXES)}")
    check_output(args.out, args.force)
    check_folder(args.out, "-o ")
    if args.out.suffix.lower() == ".onnx" and (reason := onnx_missing()):
        raise CommandError(reason)
    if args.keep_ops and args.out.suffix.lower() == ".onnx":
        raise CommandError("--keep-ops is for .pt2; ONNX holds standard operators alone")
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[args.precision]
    model, name, task = load_for_task(args.checkpoint, args.task and pick_task(args.task), "cpu")
    try:
        with user_errors(OSError):
            difference = export_network(
                model, name, args.out, value_range=args.range, dtype=dtype, keep_ops=args.keep_ops
            )
    except ExportError as error:
        print(f"ipt-fast export: {error}", file=sys.stderr)
        return 1
    size, scale = model.config.patch_size, task.scale
    nearest = "" if name == task.name else f" (the nearest task, {name})"
    print(
        f"{args.out}: {task.name}{nearest}, [B, 3, {size}, {size}] -> [B, 3, {size * scale}, {size * scale}], "
        f"{args.precision}, 0..{args.range}, {args.out.stat().st_size / 1e6:.1f} MB; "
        f"differs from the network by at most {difference:.1g} levels of 255"
    )
    return 0
