"""``ipt-fast restore --jobs``: threads change nothing but the time."""

import io
import os
import re
import signal
import threading
import time

import pytest
from rich.console import Console

from ipt_fast.cli import main
from ipt_fast.cli._restore_pace import Pace
from ipt_fast.cli._restore_pipeline import in_three_steps
from ipt_fast.inference.prepare import PreparedIPT
from tests.cli.test_restore import photo


@pytest.mark.parametrize("threads", [1, 3])
def test_outputs_and_messages_are_those_of_one_photo_after_the_other(threads, tmp_path, checkpoint, capsys):
    for number, size in enumerate(((70, 50), (9, 7), (20, 90), (48, 48))):
        photo(tmp_path / f"in/{number}.png", size)
    (tmp_path / "in/1b.png").write_bytes(b"no image")
    said, written = [], []
    for jobs in (0, threads):
        out = tmp_path / f"out{jobs}"
        arguments = [tmp_path / "in", "-o", out, "--task", "sr2", "--checkpoint", checkpoint, "--jobs", jobs]
        assert main(["restore", *map(str, arguments), "--compare"]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert re.match(r"4 images, 0.00767 MP in .* MP/s$", next(line for line in lines if "MP in" in line))
        said.append([line.split(" -> ")[0] for line in lines if " s: " not in line])
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert said[0] == said[1] and len(said[0]) == 8 and "1b.png: not an image" in said[0][3]
    assert written[0] == written[1] and len(written[0]) == 8


@pytest.mark.parametrize(
    "number, code, name, threads", [(signal.SIGINT, 130, "Ctrl-C", 2), (signal.SIGTERM, 143, "SIGTERM", 0)]
)
def test_a_signal_ends_it_in_one_line(number, code, name, threads, tmp_path, checkpoint, monkeypatch, capsys):
    for stem in "abcd":
        photo(tmp_path / "in" / f"{stem}.png")
    forward, calls = PreparedIPT.forward, []

    def stopped(self, x, task):
        calls.append(task)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return forward(self, x, task)

    monkeypatch.setattr(PreparedIPT, "forward", stopped)
    handler, others = signal.getsignal(signal.SIGTERM), threading.active_count()
    arguments = ["--task", "derain", "--checkpoint", checkpoint, "--jobs", threads]
    assert main(["restore", *map(str, [tmp_path / "in", "-o", tmp_path / "out", *arguments])]) == code
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"ipt-fast restore: stopped by {name}; 2 of 4 images restored"
    assert [line.split("/")[-1].split()[0] for line in said[-3:-1]] == ["a.png", "b.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert signal.getsignal(signal.SIGTERM) is handler and threading.active_count() == others


def test_the_pace_counts_images_and_their_megapixels():
    now = iter([10.0, 14.0, 14.0, 14.0])
    pace = Pace(lambda: next(now))
    for share in (0.25, 0.75, 1):
        pace.add(share, share * 3_000_000)
    assert pace.rate() == "0.5 images/s, 1.5 MP/s"
    assert pace.total() == "2 images, 6 MP in 4.0 s: 0.5 images/s, 1.5 MP/s"


@pytest.mark.parametrize(
    "threads, at_once, ahead, behind",
    [(0, 1, 1, 0), (1, 1, 2, 1), (3, 1, 4, 3), (0, 5, 5, 0), (1, 5, 10, 5), (7, 5, 12, 7)],
)
def test_few_photos_are_held_at_a_time(threads, at_once, ahead, behind):
    begun, reported, together, most, held = [], [], [], 0, 0
    next_is_read = threading.Event()

    def read(job):
        begun.append(job)
        if job == at_once:
            next_is_read.set()
        return job

    def work(jobs):
        nonlocal most, held
        assert not threads or next_is_read.wait(60)  # while this thread works
        time.sleep(0.02)  # for readers that do not know where to stop
        together.append(len(jobs))
        most = max(most, len(begun) - jobs[0])
        held = max(held, jobs[0] - len(reported))
        return jobs

    report = lambda job, outcome: reported.append(outcome.result())  # noqa: E731
    in_three_steps(range(22), read, work, str, report, threads, at_once)
    assert reported == [str(job) for job in range(22)]
    assert together == ([1] * 22 if at_once == 1 else [5, 5, 5, 5, 2])
    assert most <= ahead and held <= behind


def test_an_error_of_one_step_is_that_jobs_outcome_and_goes_no_further():
    def step(number):
        def call(job):
            if job % 10 == number:
                raise OSError(f"{job} in step {number}")
            return job

        return call

    said, worked = [], []

    def work(jobs):
        worked.extend(jobs)
        return [step(2)(job) for job in jobs]

    def write(job):
        time.sleep(0.3 * (job == 4))  # that no job is left does not mean that all are written
        return step(3)(job)

    in_three_steps([0, 1, 2, 3, 4], step(1), work, write, lambda job, done: said.append(done.exception()), 2)
    assert [str(error) for error in said] == ["None", "1 in step 1", "2 in step 2", "3 in step 3", "None"]
    assert worked == [0, 2, 3, 4]


def test_an_error_of_one_of_several_is_its_own():
    said = []

    def read(job):
        return {}[job] if job == 1 else job

    def work(jobs):
        if 6 in jobs:
            raise OSError("of all")
        return [OSError(f"{job} alone") if job == 2 else job for job in jobs]

    in_three_steps(range(8), read, work, str, lambda job, done: said.append((job, done.exception())), 2, 3)
    assert [(job, str(error)) for job, error in said] == [
        (0, "None"), (1, "1"), (2, "2 alone"), (3, "None"), (4, "None"), (5, "None"), (6, "of all"), (7, "of all"),
    ]  # fmt: skip


@pytest.mark.parametrize("together", ["1", "3"])
def test_the_bar_counts_what_cannot_be_read(tmp_path, checkpoint, monkeypatch, together):
    for stem in "abd":
        photo(tmp_path / "in" / f"{stem}.png")
    (tmp_path / "in" / "c.png").write_bytes(b"no photo")
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr("ipt_fast.cli.restore.message_console", lambda: console)
    arguments = ["--task", "derain", "--checkpoint", checkpoint, "--batch-photos", together]
    assert main(["restore", *map(str, [tmp_path / "in", "-o", tmp_path / "out", *arguments])]) == 1
    text = console.file.getvalue()
    assert "1 of 4 images failed" in text and "4/4" in text
