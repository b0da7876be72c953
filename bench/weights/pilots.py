"""Short runs of equal CPU seconds that choose size, start, batch and learning rate for a budget of CPU hours.

    python -m bench.weights.pilots --data PHOTOS --sets FOLDER [--seconds 300] [--out runs/pilots] [NAME ...]
    python -m bench.weights.pilots --table --out runs/pilots

One thread each; a pilot ends when its process has used that much CPU time, whatever else runs on the machine. Scores
are of the averaged weights, on the first photos of Set5, CBSD68 and Rain100L.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from bench.weights.start import GAIN, start_network
from ipt_fast.checkpoint import load_checkpoint, save_network
from ipt_fast.cli.tables import markdown_table
from ipt_fast.engine.config import recipe
from ipt_fast.evaluation.score import INPUT, Method, mean_scores, score_set
from ipt_fast.evaluation.test_sets import find_set
from ipt_fast.inference import prepare_for_inference
from ipt_fast.tasks import get_task

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "bench" / "results" / "pilots.md"

BASE = {
    "model.n_feats": 32, "model.num_layers": 1, "model.num_heads": 6, "model.ffn_ratio": 1, "steps": 100_000,
    "batch_size": 8, "lr": 1e-3, "schedule": "constant", "warmup_steps": 50, "ema": 0.99, "augment": "true",
    "workers": 0, "loader": "torch", "log_every": 50, "checkpoint_every": 1_000_000,
}  # fmt: skip
# What differs from BASE; "gain" is of ``start_network``, None for the network's own start.
PILOTS: dict[str, dict[str, object]] = {
    "base": {},
    "own start": {"gain": None},
    "no contrastive loss": {"lam": 0},
    "tokens of 4 x 4": {"model.patch_dim": 4, "model.num_heads": 8},
    "batch of 16": {"batch_size": 16},
    "48 features": {"model.n_feats": 48},
    "2 + 2 layers": {"model.num_layers": 2},
    "lr 2e-3": {"lr": 2e-3},
    "lr 5e-4": {"lr": 5e-4},
    "gain 1": {"gain": 1.0},
}
# task -> (set, photos scored, the score that its tables give)
SCORED = {
    "sr2": ("Set5", 5, "psnr_y"), "sr3": ("Set5", 5, "psnr_y"), "sr4": ("Set5", 5, "psnr_y"),
    "derain": ("Rain100L", 4, "psnr_y"), "denoise30": ("CBSD68", 4, "psnr_rgb"), "denoise50": ("CBSD68", 4, "psnr_rgb"),
}  # fmt: skip


def start_run(
    changes: Mapping[str, object], data: Path, out: Path, seed: int = 0, *, resume: bool = False
) -> tuple[subprocess.Popen, int]:
    """Start a training with ``BASE`` and these changes, on one thread; returns its process and its parameters.

    ``resume``: where a killed run left a checkpoint in ``out``, go on from it.

    Raises:
        FileExistsError: ``out`` is there, and not to be resumed.
    """
    changes = {**BASE, "seed": seed, **changes}
    gain = changes.pop("gain", GAIN)
    settings = [f"{key}={value}" for key, value in changes.items()]
    network = recipe("tiny", settings).model
    command = [sys.executable, str(ROOT / "train.py"), "--data", str(data), "--preset", "tiny", "--out", str(out)]
    command += ["--set", *settings]
    if out.exists() and not resume:
        raise FileExistsError(f"{out} holds a run that did not end; remove it to run it again")
    out.mkdir(parents=True, exist_ok=True)
    if resume:
        command += ["--resume", "auto"]
    start = start_network(network, seed, gain=GAIN if gain is None else float(str(gain)))
    if gain is not None:
        command += ["--init", str(save_network(start, out / "start.pt"))]
    with open(out / "output.txt", "w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
    return process, sum(p.numel() for p in start.parameters())


def end_run(process: subprocess.Popen, out: Path) -> int:
    """Wait for a training's end and return its steps; one that was told to end has ended well."""
    if process.wait() not in (0, 143):
        raise RuntimeError(f"{out.name}: training ended with {process.returncode}, see {out / 'output.txt'}")
    return json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"]


def run_pilot(changes: Mapping[str, object], data: Path, out: Path, seconds: float) -> dict[str, object]:
    """Train for that many CPU seconds; returns steps, CPU seconds and parameters."""
    process, parameters = start_run(changes, data, out)
    used = 0.0
    while process.poll() is None and used < seconds:
        time.sleep(0.5)
        times = psutil.Process(process.pid).cpu_times()
        used = times.user + times.system
    process.terminate()
    return {"steps": end_run(process, out), "seconds": used, "parameters": parameters}


def score(checkpoint: Path, sets: Path) -> dict[str, tuple[float, float]]:
    """Return task -> (dB of the input, dB of the network)."""
    model = load_checkpoint(checkpoint)
    found = {}
    for name in model.config.tasks:
        folder, count, metric = SCORED[name]
        task = get_task(name)
        method = Method(prepare_for_inference(model, name), name, {})
        means = mean_scores(list(score_set(find_set(sets / folder, task), task, {"model": method}, limit=count)))
        by_method = {mean.method: getattr(mean, metric) for mean in means}
        found[name] = by_method[INPUT], by_method["model"]
    return found


def write_table(out: Path) -> None:
    """Write the page of all pilots in a folder."""
    results = [read_result(out, name) for name in PILOTS if is_done(out, name)]
    columns = ["pilot", "parameters, M", "steps", "s a step", *SCORED, "mean gain"]
    before = {task: values[0] for task, values in results[0]["scores"].items()}
    rows = [["input (SR: bicubic)", "", "", "", *(f"{value:.2f}" for value in before.values()), ""]]
    for result in sorted(results, key=lambda r: -mean_gain(r["scores"])):
        rate = result["seconds"] / result["steps"]
        cells = [f"{after:.2f}" for _, after in result["scores"].values()]
        cells.append(f"{mean_gain(result['scores']):+.3f}")
        millions = f"{result['parameters'] / 1e6:.1f}"
        rows.append([result["name"], millions, result["steps"], f"{rate:.2f}", *cells])
    base = ", ".join(f"{key.removeprefix('model.')} {value}" for key, value in BASE.items() if key not in UNSAID)
    table = markdown_table(columns, rows, columns[1:])
    text = PAGE_TEXT.format(seconds=round(results[0]["seconds"]), base=base, table=table)
    PAGE.write_text(text)
    print(text)


UNSAID = ("steps", "workers", "loader", "log_every", "checkpoint_every", "model.num_heads")
PAGE_TEXT = """# Pilots for the weights that ship

`python -m bench.weights.pilots`: {seconds} CPU seconds each on one thread of a core, the same 800 photos, bfloat16.
They chose the recipe of a run of CPU hours on one core; nothing here is a trained network.

`base`: {base}; the start of
`bench/weights/start.py`. The others differ from it in what their names say. PSNR in dB of the averaged weights: luma of
Set5 and of the first 4 photos of Rain100L, RGB of the first 4 of CBSD68, noise clipped. One seed each: a few tenths of
one task may be chance.

{table}
"""


def mean_gain(scores: Mapping[str, Sequence[float]]) -> float:
    """Return the mean over the tasks of what a network adds to its input, dB."""
    return sum(after - before for before, after in scores.values()) / len(scores)


def slug(name: str) -> str:
    """Return the name of a pilot's folder."""
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in name)


def is_done(out: Path, name: str) -> bool:
    """Return whether a pilot has been scored."""
    return (out / slug(name) / "pilot.json").is_file()


def read_result(out: Path, name: str) -> dict:
    """Return what was written of a pilot that has been scored."""
    return json.loads((out / slug(name) / "pilot.json").read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pilots that are named, or all, one after the other; leave out those that are done."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.pilots", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=", ".join(PILOTS))
    add("--data", type=Path, help="folder of training photos")
    add("--sets", type=Path, help="folder with Set5, CBSD68 and Rain100L")
    add("--seconds", type=float, default=300, help="CPU seconds each (default 300)")
    add("--out", type=Path, default=Path("runs/pilots"))
    add("--table", action="store_true", help=f"write {PAGE.relative_to(ROOT)} of what is done")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(PILOTS):
        parser.error(f"no pilot {unknown.pop()!r}; there are {', '.join(PILOTS)}")
    if not args.table:
        if args.data is None or args.sets is None:
            parser.error("give --data and --sets")
        for name in args.names or PILOTS:
            folder = args.out / slug(name)
            if is_done(args.out, name):
                continue
            result = {"name": name, **run_pilot(PILOTS[name], args.data, folder, args.seconds)}
            result["scores"] = score(folder / "checkpoint.pt", args.sets)
            (folder / "pilot.json").write_text(json.dumps(result, indent=1) + "\n")
            print(f"{name}: {result['steps']} steps, {mean_gain(result['scores']):+.3f} dB", flush=True)
    else:
        write_table(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
