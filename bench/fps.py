"""Frames a second and memory of IPT and of networks that people run, at one frame size: ``python -m bench.fps``.

    OMP_NUM_THREADS=1 python -m bench.fps --out bench/results/fps
    python -m bench.fps --device cuda --dtype bf16 --seconds 20 --out bench/results/fps-gpu

Every network has random weights of its published size, runs in evaluation mode without gradients, in the same dtype, on
the same threads, one after another, each in a process of its own. Ours go through ``restore``: windows, batches and
stitching included; the others take the frame whole. What would take longer than ``--seconds`` is measured on a part of
the frame, and scaled: ours by windows, the others, whose work is the same at every pixel, by pixels; "part" says so.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.baselines.people_networks import EDSR, Upsampler
from bench.baselines.rcan import RCAN
from bench.baselines.restorers import SwinIRLight
from bench.ceilings import device_name
from ipt_fast import IPT, prepare_for_inference, restore
from ipt_fast.cli.tables import markdown_table, print_table
from ipt_fast.engine.flops import forward_flops
from ipt_fast.inference.restoration import _CPU_BATCH, _GPU_BATCH
from ipt_fast.model import IPTConfig, preset
from ipt_fast.tiling.windows import tiling

OVERLAP = 10
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def swinir_m(scale: int) -> nn.Module:
    """Return SwinIR-M for classical super-resolution: 180 features, 6 groups of 6 layers."""
    network = SwinIRLight(scale, dim=180, groups=6, layers=6)
    network.tail = nn.Sequential(
        nn.Conv2d(180, 64, 3, padding=1), nn.LeakyReLU(inplace=True), Upsampler(scale, 64),
        nn.Conv2d(64, 3, 3, padding=1),
    )  # fmt: skip
    return network


OURS = ("base", "tiny", "pocket")
OTHERS: dict[str, Callable[[int], nn.Module]] = {
    "EDSR": lambda scale: EDSR(scale, n=256, blocks=32),
    "RCAN": RCAN,
    "SwinIR-M": swinir_m,
}


@dataclass(frozen=True)
class Row:
    """One network at one scale; seconds and bytes are of a whole frame, ``part`` is the share that was run."""

    network: str
    scale: int
    parameters: int
    flops: float  # of a megapixel that goes in
    part: float
    cpu_s: float
    wall_s: float
    peak_bytes: int

    def cells(self) -> list[str]:
        """Return the row of the table."""
        share = "whole" if self.part == 1 else f"1/{1 / self.part:.0f}"
        memory = f"{'~' * (self.part < 1 and self.network in OURS)}{self.peak_bytes / 2**20:,.0f}"
        figures = f"{self.parameters / 1e6:.2f}", f"{self.flops / 1e12:.2f}", f"{1 / self.cpu_s:.3g}"
        seconds = (f"{s:,.0f}" if s >= 100 else f"{s:.3g}" for s in (self.cpu_s, self.wall_s))
        return [self.network, f"x{self.scale}", *figures, *seconds, share, memory]


COLUMNS = [
    "network", "task", "parameters, M", "TFLOP/MP", "frames/s", "CPU s a frame", "wall s a frame", "part", "memory, MB",
]  # fmt: skip


def parameters(network: nn.Module) -> int:
    """Count the trained parameters: IPT's mean shift is a constant."""
    return sum(value.numel() for value in network.parameters() if value.requires_grad)


def window_count(config: IPTConfig, height: int, width: int) -> int:
    """Return how many windows ``restore`` cuts a frame into."""
    size = config.patch_size
    laid = tiling(max(height, size), max(width, size), size, 1, OVERLAP)
    return len(laid.rows.starts) * len(laid.columns.starts)


def flops_per_megapixel(name: str, scale: int, height: int, width: int) -> float:
    """Return FLOPs of a megapixel of input: ours with the overlap of the windows, others by PyTorch's counter."""
    if name in OURS:
        config = preset(name)
        work = forward_flops(config, f"sr{scale}") * window_count(config, height, width)
        return work / (height * width) * 1e6
    with torch.device("meta"), torch.no_grad():
        network, x = OTHERS[name](scale).eval(), torch.empty(1, 3, 64, 64)
        with FlopCounterMode(display=False) as counter:
            network(x)
    return counter.get_total_flops() / 64**2 * 1e6


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that are alive at once, views not twice; on tensors without data, too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count what it makes."""
        made = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(made):
            if isinstance(value, Tensor) and value.device.type == "meta":
                storage = value.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._seen:
                    self._seen[key] = weakref.ref(storage, lambda _, key=key, size=size: self._gone(key, size))
                    self.now += size
                    self.peak = max(self.peak, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size


def counted_bytes(name: str, scale: int, height: int, width: int, dtype: str) -> int:
    """Return what the tensors of a whole frame take at most, without weights and without a library's scratch."""
    with torch.device("meta"), torch.no_grad():
        network = OTHERS[name](scale).eval().to(DTYPES[dtype])
        with LiveBytes() as live:
            network(torch.empty(1, 3, height, width, dtype=DTYPES[dtype]))
    return live.peak


def parts(name: str, height: int, width: int) -> list[tuple[int, int]]:
    """Return crops [h, w] of growing size, the last one the frame."""
    if name in OURS:
        size = preset(name).patch_size
        row = min(size, height)
        crops = [(row, min(size + i * (size - OVERLAP), width)) for i in (0, 1, 3, 7, 15)]
        crops += [(min(size + i * (size - OVERLAP), height), width) for i in (0, 1, 3, 7)]
    else:
        crops = [(max(8, height // k // 8 * 8), max(8, width // k // 8 * 8)) for k in (16, 8, 4, 2)]
    return [crop for crop in dict.fromkeys(crops) if crop != (height, width)] + [(height, width)]


def measure(name: str, scale: int, frame: tuple[int, int], device: str, dtype: str, seconds: float) -> Row:
    """Run one network on growing parts of the frame; the largest that stays within ``seconds`` of CPU time counts."""
    torch.manual_seed(0)
    height, width = frame
    task, at_once = f"sr{scale}", 1
    call: Callable[[Tensor], Any]
    if name in OURS:
        config = IPTConfig.from_dict({**preset(name).to_dict(), "tasks": [task]})
        model = IPT(config).to(device)
        count, network = parameters(model), prepare_for_inference(model, task, DTYPES[dtype])
        at_once = _CPU_BATCH if device == "cpu" else _GPU_BATCH  # windows, which restore takes where memory allows
        call = lambda x: restore(network, x[0], task, overlap=OVERLAP)  # noqa: E731
        units = lambda h, w: window_count(config, h, w)  # noqa: E731
    else:
        network = OTHERS[name](scale).eval().to(device, DTYPES[dtype])
        count = parameters(network)
        call = lambda x: network(x.to(DTYPES[dtype]))  # noqa: E731
        units = lambda h, w: h * w  # noqa: E731
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    flops = flops_per_megapixel(name, scale, height, width)
    best: Row | None = None
    with torch.no_grad():  # what only a first call does is not counted
        call(torch.rand(1, 3, *((48, 48) if name in OURS else (8, 8)), device=device))
    for h, w in parts(name, height, width):
        run, whole = units(h, w), units(height, width)
        share = run / whole
        if best is not None and best.cpu_s * share > seconds:
            break
        x = torch.rand(1, 3, h, w, device=device) * 255
        with torch.no_grad():
            held = _memory(device, reset=True)
            cpu, wall = _timed(call, x, device)
        if name in OURS or device != "cpu":  # of a small part, the peak of a process is mostly noise
            grown = (min(at_once, whole) / min(at_once, run)) if name in OURS else 1 / share
            used = int(max(0, _memory(device) - held) * grown)
        else:
            used = counted_bytes(name, scale, height, width, dtype)
        best = Row(name, scale, count, flops, share, cpu / share, wall / share, weights + used)
    assert best is not None
    return best


def _timed(call: Callable[[Tensor], Any], x: Tensor, device: str) -> tuple[float, float]:
    """Return CPU and wall seconds of one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    call(x)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def _memory(device: str, reset: bool = False) -> int:
    """Return the peak of memory since the last reset, bytes; after ``reset`` what is held now counts."""
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() if reset else peak
    if reset:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left is given back
        Path("/proc/self/clear_refs").write_text("5")
    key = "VmRSS" if reset else "VmHWM"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _child(pipe: Any, arguments: tuple) -> None:
    pipe.send(measure(*arguments))


def apart(*arguments: Any) -> Row:
    """Call ``measure`` in a process of its own, so that no network's memory is another's."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, arguments))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise RuntimeError(f"bench.fps: {arguments[0]} ended without a result") from None
    finally:
        process.join()


def page(rows: list[Row], frame: tuple[int, int], device: str, dtype: str, load: tuple[float, float]) -> str:
    """Return the result page."""
    where = device_name(torch.device(device))
    width, height = frame[1], frame[0]
    table = markdown_table([*COLUMNS, "GPU frames/s", "GPU memory"] if device == "cpu" else COLUMNS, [
        row.cells() + (["not measured"] * 2 if device == "cpu" else []) for row in rows
    ], [*COLUMNS[2:7], COLUMNS[8]])  # fmt: skip
    return f"""# Frames a second

`python -m bench.fps`: a frame of {width}x{height}, {dtype}, {where}, {torch.get_num_threads()} thread(s), torch
{torch.__version__}, Python {platform.python_version()}; load of the machine {load[0]:.1f} before, {load[1]:.1f} after,
{os.cpu_count()} cores. On a loaded machine CPU seconds count, from which frames/s are; wall seconds hold the wait for
a core, too.

{table}
All in one run, one after another, each in a process of its own: evaluation mode, no gradients, random weights of the
published sizes (one task). EDSR is without the multiplication after each block. `base`, `tiny` and `pocket` go through
`restore`: {window_count(preset("base"), *frame)} windows of 48 x 48 with an overlap of {OVERLAP} pixels, stitched.

- part: "1/60" was run on that part of the frame and scaled, ours by windows, the others by pixels; "whole" was not.
- TFLOP/MP: of a million pixels that go in; a multiply and an add are two. Ours count the windows' overlap.
- memory: weights and the most that a frame needs beside them. Ours is the process's peak, "~" scaled from the part to a
  batch of {_CPU_BATCH} windows, which is what a frame of any size needs. On a CPU the others' is counted, of the frame
  taken whole: the bytes of all tensors alive at once, SwinIR-M's scores among them, without a library's scratch. In
  tiles they would need less, too.
- Equal work is not equal quality: these are networks of their published sizes, and none is trained here.
- Not measured: the GPU. `python -m bench.fps --device cuda --dtype bf16 --out DIR` measures it.
"""


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.fps", description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=(*OURS, *OTHERS), default=[*OURS, *OTHERS])
    parser.add_argument("--scales", nargs="+", type=int, choices=(2, 3, 4), default=[2, 4])
    parser.add_argument("--frame", nargs=2, type=int, default=(640, 480), metavar=("W", "H"), help="multiples of 8")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--seconds", type=float, default=180, help="a frame that takes longer is run in part")
    parser.add_argument("--out", type=Path, help="folder for fps.md and fps.json")
    args = parser.parse_args(argv)
    frame = args.frame[1], args.frame[0]
    if any(side < 8 or side % 8 for side in frame):
        parser.error(f"--frame must be multiples of 8 (got {args.frame[0]} {args.frame[1]})")
    start = os.getloadavg()[0]
    rows = []
    for scale in args.scales:
        for name in args.networks:
            rows.append(apart(name, scale, frame, args.device, args.dtype, args.seconds))
            print_table("", COLUMNS, [rows[-1].cells()], COLUMNS[2:])
    text = page(rows, frame, args.device, args.dtype, (start, os.getloadavg()[0]))
    print_table(f"{args.frame[0]}x{args.frame[1]}", COLUMNS, [row.cells() for row in rows], COLUMNS[2:])
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "fps.md").write_text(text)
        (args.out / "fps.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
