"""Run one command of the proof within its time, with its output in a log that names no folder of this machine."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import ROOT, child_environment

_GRACE = 15.0  # seconds to end in after being asked to


class StageError(Exception):
    """A stage failed; the message is its line in the report."""


def execute(command: Sequence[str], log: Path, seconds: float, env: Mapping[str, str] | None = None) -> int | None:
    """Run ``command`` in the repository's root, output into ``log``. Its exit code; None where it ran out of time.

    It is asked to end (SIGTERM) when the time is up, and killed with all it started a little later.
    """
    environment = child_environment(PYTHONUNBUFFERED="1", COLUMNS="160", **(env or {}))
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
            clean(log)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it, and what it started and left running
    process.wait()


def clean(log: Path) -> None:
    """Take this machine's folders and the colours of a terminal out of a log."""
    text = log.read_text(errors="replace")
    places = {str(ROOT): ".", sys.prefix: "python", sys.base_prefix: "python", tempfile.gettempdir(): "<temporary>"}
    for folder, name in {**places, str(Path.home()): "~"}.items():
        text = text.replace(folder, name)
    log.write_text(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))


def last_line(log: Path, pattern: str = r"\S") -> str:
    """Return the last line of a log that matches, or an empty string."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if re.search(pattern, line)]
    return lines[-1].strip("= ") if lines else ""


def check(code: int | None, log: Path, what: str = "") -> None:
    """Check what ``execute`` returned.

    Raises:
        StageError: the command ran out of time or failed; the message ends with the last line of its log.
    """
    if code is None:
        raise StageError("out of time")
    if code != 0:
        raise StageError(f"{what}left with {code}: {last_line(log)}")


def pytest_files(
    files: Sequence[Path], log: Path, seconds: float, options: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> str:
    """Run each test file in a process of its own, within an equal share of the time that is left.

    A kernel that faults ends only its own file. Returns a line that counts; what did not begin in its share is counted
    as skipped.

    Raises:
        StageError: a test failed, or a file did not end in time; names them.
    """
    end = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    bad = []
    for place, file in enumerate(files):
        share = max(5.0, (end - time.monotonic()) / (len(files) - place))
        own = log.with_name(f"{log.stem}_{file.stem}.log")
        command = [sys.executable, "-m", "pytest", str(file), "-q", "-rs", "-p", "bench.deadline", *options]
        # A test that has begun may still take a while: it begins within 0.7 of the share.
        code = execute([*command, f"--deadline={0.7 * share:.0f}"], own, share + 5, env)
        with log.open("a") as all_logs:
            all_logs.write(f"{file.name}\n{own.read_text(errors='replace')}\n")
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last_line(own, r" in [\d.]+s")):
            counts[word] += int(number)
        late = re.findall(r"SKIPPED \[(\d+)\].*: out of time", own.read_text(errors="replace"))
        counts["of the skipped out of time"] += sum(map(int, late))
        if code not in (0, 5):
            bad.append(f"{file.name} ({'out of time' if code is None else f'exit code {code}'})")
        own.unlink()
    line = ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "no test of that kind"
    if bad:
        raise StageError(f"{line}; see {log.name} for {', '.join(bad)}")
    return line
