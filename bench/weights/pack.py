"""Put the averaged weights of a run into the package: file, sum, scores, log and model card, all at once.

    python -m bench.weights.pack runs/pocket/checkpoint.pt --sets FOLDER [--limit N] [--goes-on]

The file is float16; what is scored is what is in the file. ``--goes-on``: the run began with the packaged weights
(``train.py --init``), so its log is written behind theirs, and steps, crops and hours count on.
"""

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.weights.scores import SetScore, all_scores
from ipt_fast.checkpoint import load_checkpoint, load_training_state, save_network
from ipt_fast.checkpoint.pretrained import SUM
from ipt_fast.cli.tables import markdown_table
from ipt_fast.io.atomic import atomic_write
from ipt_fast.model import IPT
from ipt_fast.tasks import get_task

ROOT = Path(__file__).parents[2]
CARD = ROOT / "docs" / "model_card.md"
LOG = ROOT / "bench" / "results" / "pretrained" / "log.csv"
TRAINED_ON = "800 photos of ImageNet (4 of every 5 of github.com/EliSchwartz/imagenet-sample-images), of no test set"
COLUMNS = (
    "task", "set", "images", "noise", "input, Y", "output, Y", "gain, Y", "input, RGB", "output, RGB", "gain, RGB"
)  # fmt: skip
_ROWS = 50  # of the committed log


def read_log(run: Path) -> list[dict]:
    """Return the records of a run, oldest first; where it was resumed from an earlier step, the later ones count."""
    records: dict[int, dict] = {}
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "l1_of_task" in record:
            records = {step: old for step, old in records.items() if step < record["step"]}
            records[record["step"]] = record
    return list(records.values())


def hours(records: Sequence[dict], ranks: int) -> float:
    """Return the core hours of the steps of a log, each rank on one core, by the clock: what runs beside adds to it."""
    seconds, last = 0.0, 0
    for record in records:
        seconds += (record["step"] - last) * record["step_ms"] / 1e3
        last = record["step"]
    return ranks * seconds / 3600


def thin_log(records: Sequence[dict], tasks: Sequence[str], batch_size: int, ranks: int) -> list[dict]:
    """Return about ``_ROWS`` rows, each the means of as many records: what was spent, lr, contrastive, l1 of each task.

    ``batch_size`` is over all ranks.
    """
    at_once = -(-len(records) // _ROWS)
    rows = []
    for start in range(0, len(records), at_once):
        part = records[start : start + at_once]
        step, spent = part[-1]["step"], round(hours(records[: start + at_once], ranks), 3)
        row = {"step": step, "crops": step * batch_size, "hours": spent, "lr": part[-1]["lr"]}
        row["contrastive"] = round(sum(r["contrastive"] for r in part) / len(part), 4)
        for task in tasks:
            values = [r["l1_of_task"][task] for r in part if task in r["l1_of_task"]]
            row[task] = round(sum(values) / len(values), 3) if values else ""
        rows.append(row)
    return rows


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a committed log, numbers again."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{key: float(value) if value else "" for key, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "step": int(row["step"]), "crops": int(row["crops"])} for row in rows]


def joined(before: Sequence[dict], rows: Sequence[dict]) -> list[dict]:
    """Return the rows of a run behind those of the runs before it; what was spent counts on."""
    if not before:
        return list(rows)
    spent = ("step", "crops", "hours")
    return [*before, *({**row, **{key: round(row[key] + before[-1][key], 3) for key in spent}} for row in rows)]


def write_package(model: IPT, notes: dict[str, str]) -> None:
    """Write the file of weights and its sum, where ``load_checkpoint("pretrained")`` finds them."""
    SUM.parent.mkdir(exist_ok=True)
    path = save_network(model, SUM.with_suffix(".safetensors"), dtype=torch.float16, notes=notes)
    with atomic_write(SUM, "w") as file:
        file.write(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


def score_table(scores: Sequence[SetScore]) -> str:
    """Return the table of the model card."""
    rows = []
    for s in scores:
        pairs = (s.input_y, s.output_y), (s.input_rgb, s.output_rgb)
        cells = [cell for a, b in pairs for cell in (f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}")]
        rows.append([s.task, s.image_set, s.images, s.noise, *cells])
    return markdown_table(COLUMNS, rows, COLUMNS[4:])


def replace_block(text: str, name: str, content: str) -> str:
    """Return a page with what lies between its marks ``<!-- name -->`` and ``<!-- /name -->`` replaced.

    Raises:
        ValueError: the page has no such marks.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{CARD}: needs the marks {start.strip()} and {end} once each")
    return text[: text.index(start) + len(start)] + f"\n{content}\n" + text[text.index(end) :]


def draw_log(rows: Sequence[dict], tasks: Sequence[str], path: Path) -> None:
    """Draw L1 of each task over the core hours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for task, colour in zip(tasks, ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377"), strict=False):
        drawn = [row for row in rows[1:] if row[task] != ""]  # the first is still near the untrained network
        axes.plot([row["hours"] for row in drawn], [row[task] for row in drawn], color=colour, lw=1.2, label=task)
    axes.set(xlabel="core hours", ylabel="L1 of training crops, levels (log)", yscale="log")
    ticks = [t for t in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30) if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Pack."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.pack", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt in the folder of its run")
    parser.add_argument("--sets", type=Path, required=True, help="folder with Set5, CBSD68 and Rain100L")
    parser.add_argument("--limit", type=int, help="images of each set (default all)")
    parser.add_argument("--goes-on", action="store_true", help="the run began with the packaged weights")
    args = parser.parse_args(argv)
    model, state = load_checkpoint(args.checkpoint), load_training_state(args.checkpoint)
    records = [record for record in read_log(args.checkpoint.parent) if record["step"] <= state["step"]]
    config, tasks = state["config"], model.config.tasks
    ranks = json.loads((args.checkpoint.parent / "config.json").read_text(encoding="utf-8"))["run"]["ranks"]
    rows = thin_log(records, tasks, config["batch_size"], ranks)
    rows = joined(read_rows(LOG) if args.goes_on else [], rows)
    last = rows[-1]
    trained = f"{last['step']:,} steps, {last['crops']:,} crops, in {last['hours']:.1f} core hours of CPUs"

    notes = {
        "task": ", ".join(tasks),
        "scale": ", ".join(str(get_task(task).scale) for task in tasks),
        "preset": config["preset"],
        "range": "RGB 0..255 in and out",
        "training_data": TRAINED_ON,
        "training": trained,
        "licence": "MIT",
    }
    write_package(model, notes)
    scores = []
    for score in all_scores(load_checkpoint(SUM.with_suffix(".safetensors")), args.sets, args.limit):
        print(score, flush=True)
        scores.append(score)
    write_package(model, {**notes, "metrics": json.dumps([asdict(score) for score in scores])})

    LOG.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(LOG, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw_log(rows, tasks, CARD.with_name("model_card_curve.png"))
    subset = f" Of each set the first {args.limit} images at most." if args.limit else ""
    card = replace_block(CARD.read_text(encoding="utf-8"), "trained", f"{trained}, by the clock.")
    card = replace_block(card, "scores", f"PSNR in dB.{subset}\n\n{score_table(scores)}")
    with atomic_write(CARD, "w") as file:
        file.write(card)
    print(trained)
    return 0


if __name__ == "__main__":
    sys.exit(main())
