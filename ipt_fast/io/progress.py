"""Messages and progress bars on stderr. Names of files are data: nothing in them is markup."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Advance a bar by ``items``, parts of one too, or to as many as are done, where it is not further.

    ``title`` and ``note`` are shown from now on.
    """

    def __call__(
        self, items: float = 1, title: str | None = None, *, done: int | None = None, note: str | None = None
    ) -> None: ...


def message_console() -> Console:
    """Return where a command says what it does, beside its output."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str | None, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Yield a function to be called once an item. No title, or no terminal: no bar.

    What is printed to ``console`` meanwhile stays above the bar.
    """
    console = console or message_console()
    texts = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}")]
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), *texts)
    off = title is None or not total or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        job = bar.add_task(title or "", total=total, note="")
        shown = 0.0

        def advance(
            items: float = 1, title: str | None = None, *, done: int | None = None, note: str | None = None
        ) -> None:
            nonlocal shown
            # Shares of an image add up to a whole one but for rounding, and one that fails has no more of them.
            shown = shown + items if done is None else max(shown, done)
            bar.update(job, completed=shown, description=title)
            if note is not None:
                bar.update(job, note=note)

        yield advance
