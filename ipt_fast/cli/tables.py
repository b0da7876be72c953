"""Tables in the terminal, by rich where it is installed and in plain columns where it is not."""

import sys
from collections.abc import Sequence


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str] = ()
) -> None:
    """Print ``rows`` under ``columns``; the columns named in ``numeric`` are set flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(plain_table(title, columns, cells, numeric))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    # Into a file or a pipe a table must not be folded to eighty columns.
    console = Console(markup=False, highlight=False) if sys.stdout.isatty() else Console(markup=False, width=200)
    console.print(table)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str] = ()) -> str:
    """The table as text, columns padded with spaces."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [title] if title else []
    for row in [columns, ["-" * width for width in widths], *rows]:
        parts = [
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]], numeric: Sequence[str] = ()) -> str:
    """The table in Markdown."""
    rule = ["---:" if column in numeric else "---" for column in columns]
    body = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(columns), rule, *body]) + "\n"
