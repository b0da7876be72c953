"""The proof's report, ``proof.md``: device, driver and versions, the stages, and what they found."""

from dataclasses import dataclass
from typing import Any

from bench.ceilings import Ceilings
from bench.proof.decode import COLUMNS, rows_of
from bench.report import NO_GPU, ceilings_line
from ipt_fast.cli.tables import markdown_table

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


@dataclass(frozen=True)
class Outcome:
    """How one stage ended. ``line``: what it found, or why it failed."""

    name: str
    what: str
    passed: bool
    seconds: float
    line: str

    def row(self) -> tuple[str, ...]:
        """Return the cells under ``STAGE_COLUMNS``."""
        return self.name, self.what, "passed" if self.passed else "FAILED", f"{self.seconds:.0f}", self.line


STAGE_COLUMNS = ("stage", "what", "verdict", "s", "found")


def markdown(title: str, environment: dict[str, Any], found: dict[str, Any], outcomes: list[Outcome]) -> str:
    """Return the whole report as Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in environment.items())
    table = markdown_table(STAGE_COLUMNS, [o.row() for o in outcomes], ("s",))
    parts = [f"# Proof on {title}\n", f"`bash bench/gpu_proof.sh`; {machine}.\n", table]
    if "ceilings" in found:
        parts.append(ceilings_line(Ceilings(**found["ceilings"])) + ". All benchmarks: results.md.\n")
    if found.get("training"):
        known = {key: text for key, text in _TRAINING.items() if key in found["training"]}
        rows = [(name, form.format(found["training"][key])) for key, (name, form) in known.items()]
        parts.append(f"## Training\n\n{found['photos']}; log in training.jsonl.\n")
        parts.append(markdown_table(("what", "value"), rows))
    if found.get("trace"):
        heavy = [(name, str(calls), f"{ms:.2f}", f"{share:.1%}") for name, calls, ms, share in found["trace"]]
        columns = ("kernel or operator", "calls", "ms", "share")
        parts.append("## Heaviest of one training step\n\ntrace.json.gz opens at https://ui.perfetto.dev.\n")
        parts.append(markdown_table(columns, heavy, columns[1:]))
    if found.get("decoding"):
        parts += [f"## Decoding\n\n{found['photos']}.\n", markdown_table(COLUMNS, rows_of(found["decoding"]))]
    if environment["device"] == "cpu":
        parts.append(NO_GPU)
    return "\n".join(parts)
