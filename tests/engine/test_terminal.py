"""What the person at the terminal reads."""

import io
import logging
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from ipt_fast.engine.terminal import StopRequest, TrainingProgress, describe, seconds_text, show_logs

RECORD = {
    "step": 1200, "epoch": 3, "loss": 12.25, "l1": 12.0, "contrastive": 2.5, "patches_per_s": 532.4,
    "tflops": 106.48, "mfu_pct": 13.34, "data_stall_pct": 0.31, "memory_gib": 1.26, "skipped": 0,
    "bad_files": 0, "eta_s": 3725.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (2 * 86400 + 3600, "2 d 1:00:00")]
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_the_line_has_both_losses_speed_waiting_and_memory():
    line = describe(RECORD, 0.1)
    assert line == (
        "loss 12.250 = L1 12.000 + 0.1 × contrastive 2.500 · 532 patches/s · 106 TFLOP/s, MFU 13.3 % · "
        "data wait 0.3 % · memory 1.3 GiB"
    )
    assert describe(RECORD, 0).startswith("loss 12.250 (L1) · 532")
    assert "· 53.2 GFLOP/s · data" in describe({**RECORD, "tflops": 0.05324, "mfu_pct": None}, 0)
    assert describe({**RECORD, "skipped": 2, "bad_files": 1}, 0.1).endswith("2 steps skipped · 1 bad photos")


def logged(console, *, is_main=True):
    with show_logs(console, is_main), TrainingProgress(console if is_main else None, "tiny", 2000, 0.1) as progress:
        progress.step(1200, 3)
        progress.update(RECORD)
        logging.getLogger("ipt_fast.some.part").info("a line [with] brackets")
        logging.getLogger("ipt_fast.some.part").warning("a disk is full")
        logging.getLogger("another.library").info("not ours")
    return console.file.getvalue()


def test_without_a_terminal_there_are_plain_lines():
    first, second, third = logged(Console(file=io.StringIO(), width=60)).splitlines()
    assert first.startswith("step 1200/2000 · epoch 3 · loss 12.250") and first.endswith("ETA 1:02:05")
    assert (second, third) == ("a line [with] brackets", "WARNING: a disk is full")


def test_on_a_terminal_there_is_a_bar_over_the_numbers():
    said = logged(Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None, legacy_windows=False))
    assert "1200/2000" in said and "ETA 1:02:05" in said and "━" in said and "contrastive 2.500" in said
    assert "a line [with] brackets" in said and "WARNING: a disk is full" in said
    assert "step 1200/2000" not in said


def test_other_ranks_are_quiet(capsys):
    assert logged(Console(file=io.StringIO(), force_terminal=True), is_main=False) == ""
    assert capsys.readouterr().err == ""


def test_the_users_logging_is_left_as_it_was():
    ours = logging.getLogger("ipt_fast")
    before = (ours.level, ours.propagate, list(ours.handlers), list(logging.root.handlers))
    logged(Console(file=io.StringIO()))
    assert (ours.level, ours.propagate, list(ours.handlers), list(logging.root.handlers)) == before


def test_importing_sets_up_no_logging():
    code = (
        "import logging, ipt_fast.engine.run as _; print(logging.root.handlers, logging.getLogger('ipt_fast').handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_ctrl_c_afterwards_ends(number):
    before = signal.getsignal(number)
    with StopRequest(same=0.0) as request:
        assert request.signal is None
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # impatient, with SIGKILL to come; the checkpoint is what it asks for
        assert request.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before


def test_a_signal_that_comes_twice_at_once_is_one():
    """Ctrl-C reaches every rank, and the launcher passes it on."""
    with StopRequest(same=60) as request:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert request.signal == signal.SIGINT
