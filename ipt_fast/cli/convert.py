"""``ipt-fast convert``: a checkpoint to safetensors, from safetensors, to the layout of the reference code."""

import argparse
import json
from pathlib import Path

from ipt_fast.cli import CommandError, check_folder, check_output

AUDIT_NOTE = "fp16_audit"
EXAMPLE = """examples:
  ipt-fast convert IPT_pretrain.pt -o IPT_pretrain.safetensors
  ipt-fast convert runs/base/checkpoint.pt -o IPT_base.safetensors --dtype fp16
  ipt-fast convert IPT_base.safetensors -o IPT_sr2.pt --task sr2 --layout released
  ipt-fast convert IPT_pretrain.pt -o IPT_fp16.safetensors --dtype fp16 --audit
of a training checkpoint the weights alone are taken, their moving average where it holds one
exit codes: 0 written, 2 wrong usage or input"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast convert``."""
    parser.add_argument("checkpoint", type=Path, metavar="IN", help="released, own or safetensors")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="NAME.safetensors or NAME.pt")
    parser.add_argument(
        "--layout", choices=("own", "released"),
        help="of a .pt file: own (default) says sizes and tasks; released is what the reference code reads",
    )  # fmt: skip
    parser.add_argument("--task", help="keep this task alone")
    parser.add_argument("--num-heads", type=int, metavar="N", help="attention heads, where IN does not say it")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the file (default fp32)")
    parser.add_argument(
        "--audit", action="store_true",
        help='run "ipt-fast audit" and write its verdict into the header of the safetensors file',
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")


def run(args: argparse.Namespace) -> int:
    """Read, write, read again."""
    import torch

    from ipt_fast.checkpoint import read_notes, save_network
    from ipt_fast.cli._network import PRECISIONS, load_network
    from ipt_fast.cli.audit import audit_network

    suffix = args.out.suffix.lower()
    if suffix not in (".safetensors", ".pt", ".pth"):
        raise CommandError(f"-o {args.out}: give it a name that ends in .safetensors, .pt or .pth")
    if suffix == ".safetensors" and args.layout:
        raise CommandError(f"--layout {args.layout} is for .pt files; a safetensors file has one layout")
    if suffix != ".safetensors" and args.audit:
        raise CommandError("--audit writes into the header of a safetensors file; give -o a name that ends so")
    check_output(args.out, args.force, args.checkpoint)
    check_folder(args.out, "-o ")
    model = load_network(args.checkpoint, args.task, num_heads=args.num_heads)
    dtype = PRECISIONS[args.dtype]
    notes = {} if args.task else read_notes(args.checkpoint)  # they speak of all tasks
    if args.audit:
        result = audit_network(model)
        print(result.verdict())
        notes[AUDIT_NOTE] = json.dumps(result.note())
    try:
        save_network(model, args.out, args.layout, dtype, notes)
    except OSError as error:
        raise CommandError(f"cannot be written: {error}") from error
    except ValueError as error:
        raise CommandError(f"{args.out}: {error}") from error
    task = model.config.tasks[0] if len(model.config.tasks) == 1 else None
    again = load_network(args.out, task, num_heads=model.config.num_heads)
    for key, value in model.state_dict().items():
        # The frozen mean shift is exact in memory, whatever a half-precision file holds.
        stored = value.to(dtype).to(value.dtype) if value.is_floating_point() and "_mean." not in key else value
        if not torch.equal(again.state_dict()[key], stored):
            raise CommandError(f"{args.out}: {key} was not written as it is; the disk or its file system is faulty")
    parameters = sum(value.numel() for value in model.state_dict().values())
    size = args.out.stat().st_size
    written = f"{size / 1e9:.2f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB"
    what = f"{', '.join(model.config.tasks)}; {parameters:,} parameters, {args.dtype}, {written}"
    print(f"{args.checkpoint} -> {args.out}: {what}; read back and equal")
    if args.dtype == "fp16" and AUDIT_NOTE not in notes:
        print("whether activations stay within fp16 is not known: ipt-fast audit says, --audit keeps it in the file")
    return 0
