"""Progress bars: what they show of names, and of parts of an item."""

import io

from rich.console import Console

from ipt_fast.io.progress import message_console, progress_bar


def shown(console):
    return console.file.getvalue()


def test_names_are_data_and_messages_stay_above_the_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, markup=False, emoji=False, color_system=None)
    with progress_bar("[red]a[/]:dog:", 3, console) as advance:
        advance(0.3)
        advance(0.6, "b[bold]", note="2 [i]/s")
        advance(done=1)
        advance(1 / 3)
        advance(done=2)
        advance(done=1)  # of one that took longer than the next
        console.print("said")
    text = shown(console)
    assert (
        "[red]a[/]:dog:" in text
        and "b[bold]" in text
        and "2 [i]/s" in text
        and "0/3" in text
        and "2/3" in text
        and "said" in text
    )


def test_no_bar_without_a_title_or_a_terminal(capsys):
    console = Console(file=io.StringIO(), force_terminal=True)
    with progress_bar(None, 3, console) as advance:
        advance()
    with progress_bar("title", 3) as advance:
        advance()
        message_console().print("[b]:dog:")
    assert shown(console) == "" and capsys.readouterr().err == "[b]:dog:\n"
