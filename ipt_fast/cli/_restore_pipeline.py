"""Photos in three steps: read ahead and written behind by other threads, in between this one has the network."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

J = TypeVar("J")
A = TypeVar("A")
B = TypeVar("B")


def in_three_steps(
    jobs: Iterable[J],
    read: Callable[[J], A],
    work: Callable[[J, Callable[[], A]], B],
    write: Callable[[B], str],
    report: Callable[[J, "Future[str]"], None],
    threads: int,
) -> None:
    """Read each job, ``work`` on it and write what comes out; ``report`` each outcome, in the order of the jobs.

    ``work`` and ``report`` run in the caller's thread, ``read`` and ``write`` in ``threads`` threads each; with 0 all
    runs in the caller's. While one job is worked on, at most ``threads`` are read ahead, and as many are being written
    or wait for it. ``work`` gets a function that returns what was read, or raises what the reading raised.

    Where the caller's thread is interrupted, what has been worked on is still written and reported; nothing else is
    begun, and no thread is left.
    """
    left = iter(jobs)
    ahead: deque[tuple[J, Future[A]]] = deque()
    behind: deque[tuple[J, Future[str]]] = deque()

    def read_up_to(count: int) -> None:
        ahead.extend((job, readers.submit(read, job)) for job in itertools.islice(left, max(0, count - len(ahead))))

    def one_more() -> bool:
        read_up_to(max(1, threads))
        if not ahead:
            return False
        job, photo = ahead.popleft()
        photo.exception()  # wait for it, and only then for others
        read_up_to(threads)
        behind.append((job, _worked(work, job, photo, writers, write)))
        return True

    def report_down_to(count: int) -> None:
        while behind and (len(behind) > count or behind[0][1].done()):
            report(*behind.popleft())

    with _pool(threads) as readers, _pool(threads) as writers:
        try:
            while one_more():
                report_down_to(threads)
        finally:
            for _, photo in ahead:
                photo.cancel()
            report_down_to(0)


def _worked(
    work: Callable[..., B], job: J, photo: "Future[A]", writers: Executor, write: Callable[[B], str]
) -> "Future[str]":
    try:
        output = work(job, photo.result)
    except Exception as error:  # reported, or raised there
        failed: Future[str] = Future()
        failed.set_exception(error)
        return failed
    return writers.submit(write, output)


class _ThisThread(Executor):
    """Runs what it is given at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # raised where the result is asked for, as with any executor
            future.set_exception(error)
        return future


def _pool(threads: int) -> Executor:
    return ThreadPoolExecutor(threads) if threads else _ThisThread()
