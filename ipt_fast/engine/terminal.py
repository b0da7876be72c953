"""The person at the terminal: a bar or plain lines to see, log records as lines, and Ctrl-C to stop a run with."""

import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

_log = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Prints log records as lines, above a bar where one is shown; warnings are marked as such."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        mark, style = ("WARNING: ", "yellow") if record.levelno >= logging.WARNING else ("", None)
        self.console.print(f"{mark}{self.format(record)}", style=style, markup=False, soft_wrap=True)


@contextmanager
def show_logs(console: Console, is_main: bool = True) -> Iterator[None]:
    """Show on the console what the library logs, from INFO on; nothing on ranks that are not the main one.

    For commands. The library itself sets up no handler.
    """
    logger = logging.getLogger("ipt_fast")
    handler = ConsoleHandler(console) if is_main else logging.NullHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = propagate and is_main
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def seconds_text(seconds: float) -> str:
    """Return h:mm:ss, with days in front where there are any."""
    return re.sub(" days?,", " d", str(timedelta(seconds=round(seconds))))


def describe(record: dict[str, Any], lam: float) -> str:
    """Return a log record as one line: loss and its parts, speed, share of the peak, waiting, memory."""
    terms = f"= L1 {record['l1']:.3f} + {lam:g} × contrastive {record['contrastive']:.3f}" if lam else "(L1)"
    tflops, mfu = record["tflops"], record["mfu_pct"]
    work = f"{tflops:.3g} TFLOP/s" if tflops >= 0.1 else f"{1e3 * tflops:.3g} GFLOP/s"
    parts = [
        f"loss {record['loss']:.3f} {terms}",
        f"{record['patches_per_s']:.0f} patches/s",
        work if mfu is None else f"{work}, MFU {mfu:.1f} %",
        f"data wait {record['data_stall_pct']:.1f} %",
        f"memory {record['memory_gib']:.1f} GiB",
    ]
    if record["skipped"]:
        parts.append(f"{record['skipped']} steps skipped")
    if record["bad_files"]:
        parts.append(f"{record['bad_files']} bad photos")
    return " · ".join(parts)


class TrainingProgress:
    """A context in which ``update`` shows the state of the run: as a bar on a terminal, otherwise as lines of the log.

    Args:
        console: where the bar goes, if that is a terminal; None for no bar.
        title: in front of the bar.
        total: steps of the run.
        lam: weight of the contrastive loss, for the text.
    """

    def __init__(self, console: Console | None, title: str, total: int, lam: float):
        self.total, self.lam, self.line = total, lam, ""
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps · epoch {task.fields[epoch]} · ETA {task.fields[eta]}"),
            expand=True,
        )
        self.task = self.bar.add_task(title, total=total, epoch=0, eta="?")
        self.live: Live | None = None
        if console is not None and console.is_terminal:
            self.live = Live(
                get_renderable=lambda: Group(self.bar, Text(self.line, style="dim")),
                console=console,
                redirect_stderr=False,
            )

    def __enter__(self) -> "TrainingProgress":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live is not None:
            self.live.stop()

    def step(self, step: int, epoch: int) -> None:
        """Show that a step is done."""
        self.bar.update(self.task, completed=step, epoch=epoch)

    def update(self, record: dict[str, Any]) -> None:
        """Show a log record."""
        self.line = describe(record, self.lam)
        step, epoch, eta = record["step"], record["epoch"], seconds_text(record["eta_s"])
        self.bar.update(self.task, completed=step, epoch=epoch, eta=eta)
        if self.live is None:
            _log.info("step %d/%d · epoch %d · %s · ETA %s", step, self.total, epoch, self.line, eta)


class StopRequest:
    """A context in which SIGTERM and Ctrl-C ask the run to stop after the step; Ctrl-C again ends it at once.

    A launcher passes the signal of its process group on to ranks that have it already: that is the same one, as is all
    that comes within ``same`` seconds. ``signal`` is the number of the first that came, or None. All handlers are the
    caller's again afterwards, that of child processes too, which a loader sets.
    """

    def __init__(self, same: float = 2.0) -> None:
        self.signal: int | None = None
        self._same, self._came = same, 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._handle(signal.SIGCHLD, signal.getsignal(signal.SIGCHLD))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handle(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def hold_child_signal(self) -> None:
        """Keep the end of a child process from raising in the middle of a step, until the context ends.

        torch's DataLoader has a SIGCHLD handler, from its first batch on, that raises where a worker was killed,
        whatever this thread is doing; its next batch raises as well, a few seconds later.
        """
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", "").startswith("torch."):
            signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _handle(self, number: int, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous[number] = signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._came = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._came > self._same:
            raise KeyboardInterrupt
