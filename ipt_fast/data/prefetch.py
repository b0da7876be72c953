"""Items of an iterator, prefetched by a thread of their own."""

import atexit
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """What stands in the queue behind the last item, with the error that ended them, if one did."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class PrefetchIterator(Generic[T]):
    """Iterates over ``items``, of which up to ``depth`` wait finished. An error is raised where its item would be.

    The thread ends when this is closed or let go of, and before Python or a library it works in does.
    """

    def __init__(self, items: Iterator[T], depth: int = 1) -> None:
        self._ready: queue.Queue[T | _End] = queue.Queue(depth)
        stop = threading.Event()
        thread = threading.Thread(target=_work, args=(items, self._ready, stop), name="ipt-fast-prefetch", daemon=True)
        self._finalizer = weakref.finalize(self, _end, thread, stop)
        atexit.register(self._finalizer)  # before what libraries that are loaded by now have registered
        thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._ready.get()
        if not isinstance(item, _End):
            return item
        self._ready.put(item)  # the thread has ended, so there is room
        raise item.error or StopIteration

    def close(self) -> None:
        """End the thread; nothing may be taken any more."""
        atexit.unregister(self._finalizer)
        self._finalizer()


def _work(items: Iterator[T], ready: "queue.Queue[T | _End]", stop: threading.Event) -> None:
    try:
        for item in items:
            _put(ready, item, stop)
            if stop.is_set():
                return
        _put(ready, _End(None), stop)
    except Exception as error:  # handed to the thread that waits for the item
        _put(ready, _End(error), stop)


def _put(ready: "queue.Queue[T | _End]", item: T | _End, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return ready.put(item, timeout=0.1)
        except queue.Full:
            continue


def _end(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():  # as where it lets go of the last reference itself
        thread.join()
