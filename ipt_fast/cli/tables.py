"""Tables in the terminal and in Markdown, and bars in the terminal."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_FILE_WIDTH = 200  # into a file or a pipe a table must not be folded to eighty columns


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str] = ()
) -> None:
    """Print ``rows`` under ``columns``; the columns named in ``numeric`` are right-aligned."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    Console(markup=False, emoji=False, highlight=False, width=width).print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str] = ()) -> str:
    """Return the table in Markdown."""
    rule = ["---:" if column in numeric else "---" for column in columns]
    body = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(columns), rule, *body]) + "\n"
