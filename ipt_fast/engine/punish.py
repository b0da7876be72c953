"""Kill the ranks of a training at random and start it again, over and over: the weights must come out the same.

The processes are found with psutil, the steps in the run's own log, whose first line after a start is always written.
"""

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ipt_fast.checkpoint import LATEST, load_training_state
from ipt_fast.engine.metrics import LOG

TERM, KILL, STOP_KILL, IN_CHECKPOINT = "SIGTERM", "SIGKILL", "SIGSTOP+SIGKILL", "SIGKILL in a checkpoint"
IN_COPY = "SIGKILL in its copy"  # of the state to host memory, which follows the line of a checkpoint's step
WAYS = (TERM, KILL, STOP_KILL, IN_CHECKPOINT, IN_COPY)
_COMPARED = ("step", "model", "ema", "optimizer", "scaler")
# Seconds: that the ranks of a disturbed run have to end by themselves, and a start to come to its first step; that a
# rank is stopped before it is killed; at most between the line of a step and a kill, so that it comes anywhere.
_PATIENCE, _START, _STOPPED, _WITHIN_STEP = 120, 900, (0.1, 0.5), 0.2


class PunishError(RuntimeError):
    """The command failed without having been disturbed, or cannot be disturbed."""


@dataclass
class Kill:
    """One kill: the way, the rank, the last step logged before its end, and what became of the run.

    ``resumed``: the step that the next start went on from. ``code``: exit code of the command, None where it lived on
    (``torchrun --max-restarts``), "hung" where its ranks did not end by themselves.
    """

    way: str
    rank: int
    step: int
    in_flight: bool
    resumed: int | None = None
    code: int | str | None = None


def split_command(command: Sequence[str], out: Path | None = None) -> tuple[list[str], Path]:
    """Return a command that resumes by itself, and the folder of its run; ``out`` puts another folder in its place.

    Raises:
        PunishError: it has no ``--out DIR``, or resumes from a file.
    """
    words = [
        part
        for word in command
        for part in (word.split("=", 1) if word.startswith(("--out=", "--resume=")) else [word])
    ]
    for option in ("--out", "--resume"):
        if option in words[-1:]:
            raise PunishError(f"the command ends with {option}; it needs a value")
    if "--out" not in words:
        raise PunishError("the command has no --out DIR, as train.py needs it")
    if "--resume" not in words:
        words += ["--resume", "auto"]
    if (value := words[words.index("--resume") + 1]) != "auto":
        raise PunishError(f"--resume {value}: a run that is killed and started again needs --resume auto")
    place = words.index("--out") + 1
    found = Path(words[place])
    words[place] = str(out or found)
    return words, found


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[psutil.Popen]:
    """Start a command, its output appended to ``log``; it and all that it started are ended with the context."""
    with open(log, "ab") as file:
        process = psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        end(process)


def end(process: psutil.Popen) -> None:
    """Kill a process and all that it started."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = process.children(recursive=True)
    for member in (process, *family):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family)
    process.wait()


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the ranks of a training, in order: those that torchrun has started, or the process itself."""
    found: dict[int, psutil.Process] = {}
    for member in (process, *process.children(recursive=True)):  # a rank comes before the workers of its loader
        with suppress(psutil.Error):
            if (rank := member.environ().get("RANK")) is not None:
                found.setdefault(int(rank), member)
    return [found[rank] for rank in sorted(found)] or [process]


def undisturbed(command: Sequence[str], out: Path, log: Path) -> None:
    """Run a command to its end.

    Raises:
        PunishError: it failed.
    """
    with started(command, log) as process:
        if code := process.wait():
            raise PunishError(f"the undisturbed run in {out} failed with exit code {code}; its output is in {log}")


def disturb(
    command: Sequence[str],
    out: Path,
    log: Path,
    *,
    steps: int,
    every: int,
    kills: int,
    seed: int,
    tell: Callable[[Kill], None],
) -> None:
    """Run a command to its end, killing ranks of it on the way and starting it again.

    Each kill has a part of the run, equally long, and comes at a random step of it, so that the run always gets on; the
    last part has none. A kill in a checkpoint, or its copy, comes at the first one after that step. There are fewer
    kills where the run ends before.

    Args:
        command: with ``--resume auto``.
        out: folder of its run.
        log: file for its output.
        steps: length of the run.
        every: steps between its checkpoints.
        kills: number of kills.
        seed: of steps, ways and ranks.
        tell: called for each kill when the run has gone on from it.

    Raises:
        PunishError: the command failed by itself, or hangs.
    """
    rng = random.Random(seed)
    ways = [way for _ in range(0, kills, len(WAYS)) for way in rng.sample(WAYS, len(WAYS))]
    plan = iter([(int(steps * (i + rng.random()) / (kills + 1)), way) for i, way in enumerate(ways[:kills])])
    target, way = next(plan)
    last: Kill | None = None  # not told yet
    code = 1
    while code:
        killed = False
        with started(command, log) as process:
            since, stale = time.time(), _parts(out)
            while process.poll() is None:
                life = _steps(out, since)
                if last is not None and life:
                    last.resumed = life[0] - 1
                    tell(last)
                    last = None
                if not life and time.time() - since > _START:
                    raise PunishError(f"no step within {_START} s of a start; the output is in {log}")
                if not life or life[-1] < target:
                    time.sleep(0.02)
                    continue
                with suppress(psutil.NoSuchProcess):  # it ends by itself just now
                    ranks = ranks_of(process)
                    rank = rng.randrange(len(ranks))
                    if way in (TERM, KILL, STOP_KILL):
                        time.sleep(rng.uniform(0, _WITHIN_STEP))
                    while way == IN_CHECKPOINT and not _parts(out) - stale and ranks[rank].is_running():
                        time.sleep(0.0005)
                    while way == IN_COPY and ranks[rank].is_running():
                        line = _steps(out, since)[-1]
                        if line > life[-1] and line % every == 0:
                            break
                        time.sleep(0.0005)
                    in_flight = bool(_parts(out) - stale)
                    _kill(ranks[rank], way, rng)
                    killed = True
                    _, alive = psutil.wait_procs(ranks, _PATIENCE)
                    last = Kill(way, rank, _steps(out, since)[-1], in_flight, code="hung" if alive else None)
                    target, way = next(plan, (steps + 1, KILL))
                    since, stale = time.time(), _parts(out)
                    if alive:
                        end(process)
            code = process.wait()
        if code and not killed:
            raise PunishError(f"the command failed by itself, with exit code {code}; its output is in {log}")
        if last is not None and last.code is None:
            last.code = code
    if last is not None:  # its last step was logged and saved: nothing was left to do
        last.resumed = last.step
        tell(last)


def _kill(process: psutil.Process, way: str, rng: random.Random) -> None:
    if way == TERM:
        process.terminate()
        return
    if way == STOP_KILL:
        process.suspend()
        time.sleep(rng.uniform(*_STOPPED))
    process.kill()


def _parts(out: Path) -> set[Path]:
    """Return the checkpoints that are being written, or were when their rank was killed."""
    return set(out.glob(f".{Path(LATEST).stem}.*.part.pt"))


def _steps(out: Path, since: float) -> list[int]:
    """Return the steps logged after a moment, the first one first."""
    steps: list[int] = []
    with suppress(FileNotFoundError):
        for line in reversed((out / LOG).read_bytes().splitlines()):
            with suppress(ValueError):  # a line that is being written, or was cut off
                record = json.loads(line)
                if record["time"] <= since:
                    break
                steps.insert(0, record["step"])
    return steps


def differences(run: Path, reference: Path) -> tuple[list[str], int]:
    """Return the names of what differs in the last checkpoints of two runs, bit for bit, and how much was compared."""
    mine, theirs = (dict(_leaves(load_training_state(folder / LATEST))) for folder in (run, reference))
    names = sorted(mine.keys() | theirs.keys())
    return [name for name in names if not _same(mine.get(name), theirs.get(name))], len(names)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if name or key in _COMPARED:
                yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _same(mine: Any, theirs: Any) -> bool:
    if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return type(mine) is type(theirs) and mine == theirs
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (mine, theirs)]
    return torch.equal(*bits)
