"""What the person at the terminal sees: a bar where there is a terminal, plain lines where there is none."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text


def seconds_text(seconds: float) -> str:
    """h:mm:ss, with days in front where there are any."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{h}:{m:02}:{s:02}"


def describe(record: dict[str, Any], lam: float) -> str:
    """A log record as one line: loss and its parts, speed, waiting, memory."""
    parts = []
    if lam:
        parts.append(
            f"loss {record['loss']:.3f} = L1 {record['l1']:.3f} + {lam:g} × contrastive {record['contrastive']:.3f}"
        )
    else:
        parts.append(f"loss {record['loss']:.3f} (L1)")
    parts += [
        f"{record['patches_per_s']:.0f} patches/s",
        f"data wait {record['data_stall_pct']:.1f} %",
        f"memory {record['memory_gib']:.1f} GiB",
    ]
    if record["skipped"]:
        parts.append(f"{record['skipped']} steps skipped")
    if record["bad_files"]:
        parts.append(f"{record['bad_files']} bad photos")
    return " · ".join(parts)


class TrainingProgress:
    """A context in which ``update`` shows the state of the run and ``say`` prints lines above it.

    Args:
        console: where to; rich decides whether it is a terminal.
        title: in front of the bar.
        total: steps of the run.
        lam: weight of the contrastive loss, for the text.
        quiet: show nothing (ranks other than 0).
    """

    def __init__(self, console: Console, title: str, total: int, lam: float, quiet: bool = False):
        self.console, self.title, self.total, self.lam, self.quiet = console, title, total, lam, quiet
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps · epoch {task.fields[epoch]} · ETA {task.fields[eta]}"),
            console=console,
            expand=True,
        )
        self.task = self.bar.add_task(title, total=total, epoch=0, eta="?")
        self.line = ""
        self.live: Live | None = None

    def __enter__(self) -> "TrainingProgress":
        if self.console.is_terminal and not self.quiet:
            self.live = Live(
                get_renderable=self.render, console=self.console, refresh_per_second=4, redirect_stderr=False
            )
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live is not None:
            self.live.stop()

    def render(self) -> RenderableType:
        """The two rows: the bar, and the numbers of the last log line."""
        return Group(self.bar, Text(self.line, style="dim"))

    def step(self, step: int, epoch: int) -> None:
        """A step is done."""
        if self.live is not None:
            self.bar.update(self.task, completed=step, epoch=epoch)

    def update(self, record: dict[str, Any]) -> None:
        """A log record has been written."""
        self.line = describe(record, self.lam)
        eta = seconds_text(record["eta_s"])
        self.bar.update(self.task, completed=record["step"], epoch=record["epoch"], eta=eta)
        if self.live is None:
            self.say(f"step {record['step']}/{self.total} · epoch {record['epoch']} · {self.line} · ETA {eta}")

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(
                text, style="yellow" if text.startswith("WARNING") else None, markup=False, soft_wrap=True
            )
