"""Ctrl-C and SIGTERM end every command alike: one line and an exit code, 130 or 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came; where Ctrl-C is handled, so is this."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """Return what a shell expects of a program that a signal ended."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def stop_line(stop: KeyboardInterrupt) -> str:
    """Say what ended the program, and what the exception says of the work until then."""
    return f"stopped by {'SIGTERM' if isinstance(stop, Terminated) else 'Ctrl-C'}" + (f"; {stop}" if stop.args else "")


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise ``Terminated`` in the main thread; afterwards its handler is the one from before."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
