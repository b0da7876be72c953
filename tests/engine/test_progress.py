"""What the person at the terminal reads."""

import io

import pytest
from rich.console import Console

from ipt_fast.engine.progress import TrainingProgress, describe, seconds_text

RECORD = {
    "step": 1200, "epoch": 3, "loss": 12.25, "l1": 12.0, "contrastive": 2.5, "patches_per_s": 532.4,
    "data_stall_pct": 0.31, "memory_gib": 1.26, "skipped": 0, "bad_files": 0, "eta_s": 3725.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (2 * 86400 + 3600, "2 d 1:00:00")]
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_the_line_has_both_losses_speed_waiting_and_memory():
    line = describe(RECORD, 0.1)
    assert line == (
        "loss 12.250 = L1 12.000 + 0.1 × contrastive 2.500 · 532 patches/s · data wait 0.3 % · memory 1.3 GiB"
    )
    assert describe(RECORD, 0).startswith("loss 12.250 (L1) · 532")
    assert describe({**RECORD, "skipped": 2, "bad_files": 1}, 0.1).endswith("2 steps skipped · 1 bad photos")


def test_without_a_terminal_there_are_plain_lines():
    file = io.StringIO()
    with TrainingProgress(Console(file=file, width=60), "tiny", 2000, 0.1) as progress:
        progress.step(1200, 3)
        progress.update(RECORD)
    (line,) = file.getvalue().splitlines()
    assert line.startswith("step 1200/2000 · epoch 3 · loss 12.250") and line.endswith("ETA 1:02:05")


def test_on_a_terminal_there_is_a_bar_over_the_numbers():
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system=None, legacy_windows=False)
    with TrainingProgress(console, "tiny", 2000, 0.1) as progress:
        progress.update(RECORD)
        progress.say("a line [with] brackets")
    said = file.getvalue()
    assert "1200/2000" in said and "ETA 1:02:05" in said and "━" in said and "contrastive 2.500" in said
    assert "a line [with] brackets" in said


def test_other_ranks_are_quiet():
    file = io.StringIO()
    with TrainingProgress(Console(file=file, force_terminal=True), "tiny", 2000, 0.1, quiet=True) as progress:
        progress.update(RECORD)
        progress.say("nothing")
    assert file.getvalue() == ""
