"""``ipt-fast app``: a page on this machine that restores photos."""

import argparse
import os
import tempfile
import threading
from pathlib import Path

from ipt_fast.checkpoint import PRETRAINED
from ipt_fast.cli import CommandError, user_errors
from ipt_fast.cli._network import PRECISIONS, load_network, pick_device, pick_precision
from ipt_fast.inference.prepare import prepare_for_inference
from ipt_fast.io.images import pillow_set

EXAMPLE = """examples:
  ipt-fast app                                      then open http://127.0.0.1:7860
  ipt-fast app --checkpoint runs/base/checkpoint.pt --port 8000
  ipt-fast app --host 0.0.0.0                       for others in this network: there is no login
Ctrl-C ends it. It needs no network; files are deleted when a page is closed, all at the end.
extra: app, in a virtual environment of its own (Gradio needs a Pillow older than 13)
exit codes: 2 wrong usage or input, 130 and 143 stopped"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast app``."""
    add = parser.add_argument
    add(
        "--checkpoint", type=Path, default=Path(PRETRAINED), metavar="FILE",
        help="released, own or safetensors (default: the network that comes with ipt-fast)",
    )  # fmt: skip
    add("--task", help="of a file that holds one task and does not say which")
    add("--host", default="127.0.0.1", help="address to serve at (default 127.0.0.1: this machine alone)")
    add("--port", type=int, default=7860, metavar="N", help="default 7860")
    add("--device", default="auto", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    add(
        "--precision", choices=("auto", *PRECISIONS), default="auto",
        help="of the arithmetic (default auto: bf16 where the processor has it, otherwise fp32 or fp16)",
    )  # fmt: skip
    add("--max-pixels", type=int, default=16_000_000, metavar="N", help="refuse photos of more (default 16,000,000)")
    add("--max-upload", type=int, default=64, metavar="MB", help="refuse files of more (default 64)")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    for name in ("max_pixels", "max_upload"):
        if getattr(args, name) < 1:
            raise CommandError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not 1 <= args.port <= 65535:
        raise CommandError(f"--port must be 1 to 65535, got {args.port}")
    with tempfile.TemporaryDirectory(prefix="ipt-fast-app-", ignore_cleanup_errors=True) as folder:
        # Gradio reads both as it is imported: where its files go, and that it tells nobody of us.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        return _serve(args, Path(folder))


def _serve(args: argparse.Namespace, folder: Path) -> int:
    try:
        from ipt_fast.app.page import Setting, served
    except ImportError as error:
        raise CommandError(
            f"needs gradio ({error}); pip install 'ipt-fast[app]' in an environment of its own"
        ) from error

    device = pick_device(args.device)
    model = load_network(args.checkpoint, args.task, device)
    network = prepare_for_inference(model, dtype=pick_precision(args.precision, device))
    what = args.checkpoint.name
    if args.checkpoint == Path(PRETRAINED):
        what = "the small network that comes with ipt-fast"
    what += f" ({device.type}, {str(network.dtype).removeprefix('torch.')})"
    setting = Setting(network, model.config.tasks, what, args.max_pixels, args.max_upload * 2**20)
    refused = max(args.max_pixels, 178_956_970)  # by Pillow, where it is more than it takes by itself
    with pillow_set(refused), user_errors(OSError), served(setting, folder, args.host, args.port) as address:
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            print("whoever reaches this machine can use it: there is no login", flush=True)
        threading.Event().wait()
    return 0
