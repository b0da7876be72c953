import sys
import threading
import time

import pytest

from ipt_fast.data.thread_time import cpu_seconds, thread_ids

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


@linux
def test_a_thread_that_works_takes_time_and_one_that_waits_takes_none():
    stop, ids = threading.Event(), {}

    def work(name, until):
        ids[name] = threading.get_native_id()
        while name == "busy" and time.thread_time() < 0.2:
            pass
        until.wait()

    threads = [threading.Thread(target=work, args=(name, stop)) for name in ("busy", "idle")]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(ids) < 2 or cpu_seconds({ids["busy"]}) < 0.2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert set(ids.values()) <= thread_ids("")
    idle, busy = cpu_seconds({ids["idle"]}), cpu_seconds({ids["busy"]})
    assert idle < 0.1 < 0.2 <= busy
    assert cpu_seconds(set(ids.values())) == pytest.approx(idle + busy, abs=0.05)
    stop.set()
    for thread in threads:
        thread.join()


def test_threads_that_are_not_there_count_nothing():
    assert cpu_seconds(set()) is None and cpu_seconds({2**30}) is None
    assert thread_ids("no thread is called so") == set()
