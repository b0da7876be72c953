import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from ipt_fast.data.loader import PrefetchIterator


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def running():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ipt-fast-prefetch")]


def test_items_come_in_order_and_end():
    ahead = PrefetchIterator(i for i in range(100))
    assert list(ahead) == list(range(100))
    assert list(ahead) == []  # and stays at its end


def test_only_so_many_items_are_made_ahead():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    ahead = PrefetchIterator(items())
    wait_for(lambda: len(made) == 2)
    time.sleep(0.3)
    assert len(made) == 2
    assert next(ahead) == 0
    wait_for(lambda: len(made) == 3)
    ahead.close()


def test_an_error_comes_where_its_item_would_have():
    def items():
        yield 1
        raise ValueError("no second")

    ahead = PrefetchIterator(items())
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no second"):
            next(ahead)


@pytest.mark.parametrize("how", ["close", "let go"])
def test_the_iterator_is_closed_in_its_own_thread(how):
    threads = []

    def items():
        try:
            while True:
                yield 0
        finally:
            threads.append(threading.current_thread().name)

    ahead = PrefetchIterator(items())
    assert next(ahead) == 0
    if how == "close":
        ahead.close()
        ahead.close()
    gone = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert gone() is None and threads == ["ipt-fast-prefetch_0"] and not running()


def test_the_thread_ends_before_a_library_and_python_do():
    code = """
import atexit, time
from ipt_fast.data.loader import PrefetchIterator
atexit.register(print, "library ends")
def items():
    try:
        while True:
            yield 0
    finally:
        time.sleep(0.3)
        print("ended")
ahead = PrefetchIterator(items())
next(ahead)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ended\nlibrary ends\n")
