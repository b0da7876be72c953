"""Make calls from seeds, count how they ended, and write the table."""

import random
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from ipt_fast.cli.tables import markdown_table
from tests.fuzz.images import random_image
from tests.fuzz.networks import random_network
from tests.fuzz.ops import random_op
from tests.fuzz.recipes import random_recipe
from tests.fuzz.verdict import AGREED, REFUSED, FaultError

DOMAINS: dict[str, tuple[int, Callable[[random.Random], str]]] = {  # how many of a hundred calls, and the call
    "ops": (64, random_op),
    "accelerate": (12, random_network),
    "image files": (14, random_image),
    "recipe": (10, random_recipe),
}
COLUMNS = ("domain", "calls", "agreed", REFUSED, "faults", "seconds")
FAULT = "fault"
_CHUNK = 50


@dataclass(frozen=True)
class Outcome:
    """How the call of a seed ended; ``reason`` of a fault."""

    seed: int
    domain: str
    verdict: str
    seconds: float
    reason: str = ""


def one(seed: int) -> Outcome:
    """Make the call of a seed; nothing else decides about it."""
    rng = random.Random(seed)
    names = list(DOMAINS)
    domain = rng.choices(names, [DOMAINS[name][0] for name in names])[0]
    torch.manual_seed(seed)
    start, reason = time.perf_counter(), ""
    try:
        verdict = DOMAINS[domain][1](rng)
    except FaultError as error:
        verdict, reason = FAULT, str(error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        verdict, reason = FAULT, f"{type(error).__name__} at {where}: {error}"
    return Outcome(seed, domain, verdict, time.perf_counter() - start, " ".join(reason.split())[:400])


def run(seed: int, calls: int, seconds: float, jobs: int = 1) -> Iterator[Outcome]:
    """Yield the outcomes of the seeds from ``seed * 1_000_000`` on, until all are made or the time is up."""
    end, first = time.monotonic() + seconds, seed * 1_000_000
    if jobs == 1:
        for number in range(first, first + calls):
            if time.monotonic() > end:
                return
            yield one(number)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for start in range(first, first + calls, _CHUNK * jobs):
            if time.monotonic() > end:
                return
            yield from pool.map(one, range(start, min(start + _CHUNK * jobs, first + calls)), chunksize=_CHUNK)


def table(outcomes: list[Outcome]) -> list[tuple[str, ...]]:
    """Return the rows under ``COLUMNS``, the sums last."""
    rows = []
    for name in (*DOMAINS, "all"):
        own = [o for o in outcomes if name in (o.domain, "all")]
        ends = [sum(o.verdict == verdict for o in own) for verdict in (AGREED, REFUSED, FAULT)]
        rows.append((name, *(f"{n:,}" for n in (len(own), *ends)), f"{sum(o.seconds for o in own):.0f}"))
    return rows


def markdown(outcomes: list[Outcome], command: str) -> str:
    """Return the table and the faults, one a line with its seed."""
    text = f"# Random calls\n\n`{command}`, torch {torch.__version__}, on a CPU.\n\n"
    text += markdown_table(COLUMNS, table(outcomes), COLUMNS[1:])
    faults = [o for o in outcomes if o.verdict == FAULT]
    if faults:
        text += "\n## Faults\n\n`python -m tests.fuzz --one SEED` makes such a call again.\n\n"
        text += markdown_table(("seed", "domain", "fault"), [(o.seed, o.domain, o.reason) for o in faults])
    return text
