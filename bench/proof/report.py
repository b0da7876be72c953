"""The proof's page, ``proof.md``: what was asked, what came out, who won by how much, what was not measured and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.proof.decode import COLUMNS, rows_of
from bench.proof.verdicts import COLUMNS as VERDICT_COLUMNS
from bench.proof.verdicts import draw_throughput, draw_verdicts, in_short, verdicts
from bench.report import NO_GPU, ceilings_line, skipped_rows
from bench.results_io import Run
from ipt_fast.cli.tables import markdown_table
from ipt_fast.ops._registry import module_missing

_TRAINING = {
    "steps": ("steps counted, after the first ones", "{:.0f}"),
    "patches_per_s": ("patches a second", "{:,.1f}"),
    "step_ms": ("step, ms", "{:,.1f}"),
    "data_stall_pct": ("data stall, % of the time", "{:.2f}"),
    "decode_ms": ("decoding a batch, ms", "{:,.1f}"),
    "degrade_ms": ("degradation a step, ms", "{:,.2f}"),
    "memory_gib": ("peak memory, GiB", "{:.2f}"),
    "first_loss": ("loss of the first log line", "{:.2f}"),
    "last_loss": ("loss of the last log line", "{:.2f}"),
}
_THROUGHPUT = {
    "patches_per_s": ("patches/s", "{:,.1f}"),
    "step_ms": ("step, ms", "{:,.1f}"),
    "mfu": ("MFU", "{:.1%}"),
    "busy": ("GPU busy", "{:.0%}"),
    "memory_gib": ("peak GiB", "{:.1f}"),
}
_TITLES = {"correctness": "Is it right?", "speed": "Is it fast?"}
_DONE = {"correctness": "passed", "speed": "measured"}
_MANY = 4  # cases of one reason that the page names
_STYLE = """<style>body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.25em .6em;text-align:left}
img{max-width:100%}</style>"""


@dataclass(frozen=True)
class Outcome:
    """How one stage ended. ``line``: what it found, or why it failed."""

    name: str
    what: str
    passed: bool
    seconds: float
    line: str

    @property
    def answer(self) -> str:
        """Return the verdict in a word or two."""
        if not self.passed:
            return "FAILED"
        return "not run" if self.line.startswith("not run") else "passed"

    def row(self) -> tuple[str, ...]:
        """Return the cells under ``STAGE_COLUMNS``."""
        return self.name, self.what, self.answer, f"{self.seconds:.0f}", self.line


STAGE_COLUMNS = ("stage", "what", "verdict", "s", "found")


@dataclass
class Page:
    """All that the page is made of. ``parts``: name of a part -> its outcomes; ``run``: the benchmarks' results."""

    title: str
    machine: dict[str, Any]
    parts: dict[str, list[Outcome]]
    found: dict[str, Any]
    run: Run | None = None

    @property
    def throughput(self) -> list[dict[str, Any]]:
        """Return the figures of the training steps."""
        rows = self.found.get("checks", {}).get("throughput", [])
        return [row["values"] for row in rows if row["values"]]


def write_page(page: Page, folder: Path) -> None:
    """Write proof.md and its plots; proof.html too where the package ``markdown`` is installed."""
    found = verdicts(page.run.results) if page.run else []
    if found:
        draw_verdicts(found, folder / "verdicts.png")
    if page.throughput:
        draw_throughput(page.throughput, folder / "throughput.png")
    text = markdown(page)
    (folder / "proof.md").write_text(text)
    if module_missing("markdown") is None:
        from markdown import markdown as to_html

        body = to_html(text, extensions=["tables"])
        head = f'<meta charset="utf-8"><title>Proof on {page.title}</title>{_STYLE}'
        (folder / "proof.html").write_text(f"<!doctype html>{head}{body}\n")


def markdown(page: Page) -> str:
    """Return the whole page as Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in page.machine.items())
    parts = [f"# Proof on {page.title}\n", f"`bash bench/gpu_proof.sh`; {machine}.\n"]
    if page.machine["device"] == "cpu":
        parts.append(f"**A try of the proof itself, in small shapes on a CPU.** {NO_GPU}")
    parts += ["## In short\n", *_in_short(page)]
    for name, outcomes in page.parts.items():
        if outcomes:
            parts += [f"## {_TITLES[name]}\n", markdown_table(STAGE_COLUMNS, [o.row() for o in outcomes], ("s",))]
        if name == "speed" and outcomes:
            parts += _speed(page)
    parts += _not_measured(page)
    parts += _details(page.found)
    if page.run:
        parts += ["## Every result\n", f"{ceilings_line(page.run.ceilings)}. All: results.md, results.json, logs.\n"]
    return "\n".join(parts)


def _in_short(page: Page) -> list[str]:
    lines = []
    for name, outcomes in page.parts.items():
        if not outcomes:
            lines.append(f"- {_TITLES[name]} Not asked yet: `bash bench/gpu_proof.sh {name}`.")
            continue
        answers = [o.answer for o in outcomes]
        line = f"- {_TITLES[name]} {answers.count('passed')} of {len(answers)} stages {_DONE[name]}"
        line += f", {idle} could not be run here" if (idle := answers.count("not run")) else ""
        bad = [f"{o.what} {o.line}" for o in outcomes if not o.passed]
        lines.append(line + (f". **Failed: {'; '.join(bad)}**" if bad else "."))
    if page.run and (found := verdicts(page.run.results)):
        lines.append(f"- Operators and network: {in_short(found)}.")
    if page.throughput:
        lines.append(f"- Training steps: {_race(page.throughput)}.")
    return ["\n".join(lines) + "\n"]


def _race(values: Sequence[dict[str, Any]]) -> str:
    """Return our rate at the first batch size against the best of the others, in a phrase."""
    B = values[0]["B"]
    here = sorted((v for v in values if v["B"] == B), key=lambda v: -v["patches_per_s"])
    ours = next((v for v in here if v["contender"].startswith("ipt_fast")), None)
    other = next((v for v in here if not v["contender"].startswith("ipt_fast")), None)
    shown = lambda v: f"{v['contender']} {v['patches_per_s']:,.1f} patches/s"  # noqa: E731
    if ours is None or other is None:
        return f"at B={B} {shown(here[0])}, nothing to compare with"
    more = f", {ours['mfu']:.1%} of the measured matmul rate (MFU)" if "mfu" in ours else ""
    more += f", the GPU busy {ours['busy']:.0%} of the time" if "busy" in ours else ""
    return f"at B={B} {shown(ours)}, {ours['patches_per_s'] / other['patches_per_s']:.2f}x of {shown(other)}{more}"


def _speed(page: Page) -> list[str]:
    parts = []
    if page.run and (found := verdicts(page.run.results)):
        parts.append(
            "### Who won\n\nOurs is the best of our backends, the other the best that was measured in the same run; "
            "level where the middle 60 % of the rounds overlap.\n"
        )
        parts += ["![times faster than the best other](verdicts.png)\n"]
        parts.append(markdown_table(VERDICT_COLUMNS, [v.row() for v in found]))
    if page.throughput:
        known = {k: v for k, v in _THROUGHPUT.items() if any(k in values for values in page.throughput)}
        rows = [
            (v["contender"], str(v["B"]), *(form.format(v[k]) if k in v else "" for k, (_, form) in known.items()))
            for v in page.throughput
        ]
        columns = ("contender", "B", *(title for title, _ in known.values()))
        parts.append(
            "### Training steps\n\nOn tensors that are there, x2; MFU against the matmul rate measured in the "
            "same process; busy: time of all kernels over that of the steps. "
            "The official network trains with our contrastive loss.\n"
        )
        parts += ["![patches a second](throughput.png)\n", markdown_table(columns, rows, columns[1:])]
    return parts


def _not_measured(page: Page) -> list[str]:
    """Return a table of what was not measured, by reason."""
    rows = [(_shortened(cases), reason) for cases, reason in skipped_rows(page.run)] if page.run else []
    for listed in page.found.get("checks", {}).values():
        rows += [(row["case"], row["found"]) for row in listed if row["passed"] is None]
    rows += [(o.what, o.line) for outcomes in page.parts.values() for o in outcomes if o.answer == "not run"]
    rows += [(row["loader"], row["why_not"]) for row in page.found.get("decoding", []) if "why_not" in row]
    return ["## Not measured\n", markdown_table(("what", "why"), rows)] if rows else []


def _shortened(cases: str) -> str:
    """Return the names of a few cases without that of their function, and how many more there are."""
    names = [name.removesuffix("]").partition("[")[2] or name for name in cases.split(", bench_")]
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return "; ".join(names[:_MANY]) + more


def _details(found: dict[str, Any]) -> list[str]:
    parts = []
    if found.get("training"):
        known = {key: text for key, text in _TRAINING.items() if key in found["training"]}
        rows = [(name, form.format(found["training"][key])) for key, (name, form) in known.items()]
        parts.append(f"## train.py on photos\n\n{found['photos']}; log in training.jsonl.\n")
        parts.append(markdown_table(("what", "value"), rows))
    if found.get("trace"):
        heavy = [(name, str(calls), f"{ms:.2f}", f"{share:.1%}") for name, calls, ms, share in found["trace"]]
        columns = ("kernel or operator", "calls", "ms", "share")
        parts.append("## Heaviest of one training step\n\ntrace.json.gz opens at https://ui.perfetto.dev.\n")
        parts.append(markdown_table(columns, heavy, columns[1:]))
    if found.get("decoding"):
        parts += [f"## Decoding\n\n{found['photos']}.\n", markdown_table(COLUMNS, rows_of(found["decoding"]))]
    return parts
