"""Ctrl-C and SIGTERM."""

import os
import signal
import threading

import pytest

from ipt_fast.io.signals import Terminated, exit_code, sigterm_raises, stop_line


def test_sigterm_raises_and_its_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as stop, sigterm_raises():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert exit_code(stop.value) == 143 and stop_line(stop.value) == "stopped by SIGTERM"
    assert exit_code(KeyboardInterrupt()) == 130
    assert stop_line(KeyboardInterrupt("2 of 3 done")) == "stopped by Ctrl-C; 2 of 3 done"


def test_in_another_thread_nothing_is_changed():
    seen = []

    def work():
        with sigterm_raises():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
