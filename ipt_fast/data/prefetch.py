"""Items of an iterator, prefetched by a thread of their own."""

import atexit
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PrefetchIterator(Generic[T]):
    """Iterates over ``items``, of which up to ``depth`` wait finished. An error is raised where its item would be.

    The thread ends when this is closed or let go of, and before Python or a library it works in does.
    """

    def __init__(self, items: Iterator[T], depth: int = 1) -> None:
        self._ready: queue.Queue[Any] = queue.Queue(depth)  # (item, None), at last (None, error)
        stop = threading.Event()
        thread = threading.Thread(target=_work, args=(items, self._ready, stop), name="ipt-fast-prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, _end, thread, stop)
        atexit.register(self._finalizer)  # before what libraries that are loaded by now have registered
        thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item, error = self._ready.get()
        if error is not None:
            self._ready.put((None, error))  # the thread has ended, so there is room
            raise error
        return item

    def close(self) -> None:
        """End the thread; nothing may be taken any more."""
        atexit.unregister(self._finalizer)
        self._finalizer()


def _work(items: Iterator[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    end: Exception = StopIteration()
    try:
        for item in items:
            _put(ready, (item, None), stop)
            if stop.is_set():
                return
    except Exception as error:  # handed to the thread that waits for the item
        end = error
    _put(ready, (None, end), stop)


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return ready.put(item, timeout=0.1)
        except queue.Full:
            continue


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():  # as where it lets go of the last reference itself
        thread.join()
