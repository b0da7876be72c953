"""Photos in three steps: read ahead and written behind by other threads, in between this one has the network."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

J = TypeVar("J")
A = TypeVar("A")
B = TypeVar("B")


def in_three_steps(
    jobs: Iterable[J],
    read: Callable[[J], A],
    work: Callable[[list[A]], Sequence[B | Exception]],
    write: Callable[[B], str],
    report: Callable[[J, "Future[str]"], None],
    threads: int,
    at_once: int = 1,
) -> None:
    """Read each job, ``work`` on it and write what comes out; ``report`` each outcome, in the order of the jobs.

    ``work`` gets what was read of ``at_once`` jobs, less those that could not be read, and returns what becomes of
    each: something to be written, or why it failed. What it raises is the outcome of all of them.

    ``work`` and ``report`` run in the caller's thread, ``read`` and ``write`` in ``threads`` threads each; with 0 all
    runs in the caller's. While some jobs are worked on, at most ``threads`` or ``at_once``, the larger of them, are
    read ahead, and as many are being written or wait for it; with no threads none.

    Where the caller's thread is interrupted, what has been worked on is still written and reported; nothing else is
    begun, and no thread is left.
    """
    left = iter(jobs)
    ahead: deque[tuple[J, Future[A]]] = deque()
    behind: deque[tuple[J, Future[str]]] = deque()
    most = max(threads, at_once)
    kept = most if threads else 0

    def read_up_to(count: int) -> None:
        ahead.extend((job, readers.submit(read, job)) for job in itertools.islice(left, max(0, count - len(ahead))))

    def some_more() -> bool:
        read_up_to(most)
        if not ahead:
            return False
        taken = [ahead.popleft() for _ in range(min(at_once, len(ahead)))]
        for _, photo in taken:
            photo.exception()  # wait for them, and only then for others
        read_up_to(kept)
        behind.extend(_worked(work, taken, writers, write))
        return True

    def report_down_to(count: int) -> None:
        while behind and (len(behind) > count or behind[0][1].done()):
            report(*behind.popleft())

    with _pool(threads) as readers, _pool(threads) as writers:
        try:
            while some_more():
                report_down_to(kept)
        finally:
            for _, photo in ahead:
                photo.cancel()
            report_down_to(0)


def _worked(
    work: Callable[[list[A]], Sequence[B | Exception]],
    taken: Sequence[tuple[J, "Future[A]"]],
    writers: Executor,
    write: Callable[[B], str],
) -> Iterator[tuple[J, "Future[str]"]]:
    """Yield each job as soon as its output is given to a writer, or with the error that is its outcome."""
    photos = [photo.result() for _, photo in taken if photo.exception() is None]
    try:
        outputs = iter(work(photos) if photos else ())
    except Exception as error:  # reported, or raised there
        outputs = itertools.repeat(error)
    for job, photo in taken:
        outcome = photo.exception() or next(outputs)
        if isinstance(outcome, BaseException):
            failed: Future[str] = Future()
            failed.set_exception(outcome)
            yield job, failed
        else:
            yield job, writers.submit(write, outcome)


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
