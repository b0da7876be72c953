"""Tables: what a person and a file get."""

import pytest

from ipt_fast.cli.tables import markdown_table, print_table

ROWS = [("patch_attention", 1.5, "[bold]as :dog: it is[/bold]"), ("degrade", 12.25, "a | b")]


def printed(capsys, *arguments):
    print_table(*arguments)
    return capsys.readouterr().out


def test_every_cell_is_printed_under_its_column(capsys):
    text = printed(capsys, "[red]title[/]", ("op", "ms", "note"), ROWS)
    title, *lines = text.splitlines()
    assert title.strip() == "[red]title[/]"
    cells = [[cell.strip() for cell in line[1:-1].split("\u2502")] for line in lines if line.startswith("\u2502")]
    assert cells == [[str(cell) for cell in row] for row in ROWS]


def test_numeric_columns_are_right_aligned(capsys):
    text = printed(capsys, "", ("op", "ms"), [("a", 1), ("b", 12345)], ("ms",))
    line = next(line for line in text.splitlines() if " a " in line)
    assert line.endswith("    1 \u2502") and line.startswith("\u2502 a  \u2502")


def test_a_long_row_is_not_folded_in_a_file(capsys):
    text = "x" * 150
    assert text in printed(capsys, "", ("what",), [(text,)])


@pytest.mark.parametrize("numeric, rule", [((), "| --- | --- | --- |"), (("ms",), "| --- | ---: | --- |")])
def test_markdown(numeric, rule):
    lines = markdown_table(("op", "ms", "note"), ROWS, numeric).splitlines()
    assert lines[:2] == ["| op | ms | note |", rule]
    assert lines[3] == r"| degrade | 12.25 | a \| b |"
