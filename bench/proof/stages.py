"""The stages of the proof. Each returns one line on what it found, or raises ``StageError``."""

import gzip
import importlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import ROOT
from bench.ceilings import Ceilings, device_name
from bench.proof.check import read_rows
from bench.proof.csrc import passed
from bench.proof.photos import write_photos
from bench.proof.run import StageError, check, execute, last_line, pytest_files
from bench.proof.training import heaviest, summarise
from bench.results_io import Run, read_run, save_run
from bench.results_io import environment as machine
from ipt_fast.cli.info import OPS
from ipt_fast.gpus import GPUS
from ipt_fast.ops._registry import assume

_WARM_UP_STEPS = 20  # the trace, kernels compiled, libraries choosing theirs


@dataclass
class Proof:
    """Where the proof runs and what it has found so far. ``small``: so little that a CPU does it in minutes."""

    device: torch.device
    folder: Path
    small: bool
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="ipt_fast_proof_")
        self.work = Path(self._temporary.name)

    def log(self, stage: str) -> Path:
        """Return an empty log for the stage."""
        path = self.folder / "logs" / f"{stage}.log"
        path.write_text("")
        return path

    def photos(self) -> Path:
        """Return the folder of photos, made when first asked for."""
        folder = self.work / "photos"
        if not folder.exists():  # what an earlier command found says nothing about this one's folder
            self.found["photos"] = write_photos(folder, 48 if self.small else 480)
        return folder

    def close(self) -> None:
        """Remove what is not kept."""
        self._temporary.cleanup()


@dataclass(frozen=True)
class Stage:
    """``what`` it asks, as a question of the report; ``seconds`` are its budget: on a GPU and, in small, on a CPU."""

    name: str
    what: str
    seconds: int
    seconds_small: int
    run: Callable[[Proof, float], str]


def environment(proof: Proof, seconds: float) -> str:
    """Note versions, the driver, and which backend each op takes."""
    log = proof.log("environment")
    if proof.device.type == "cuda" and shutil.which("nvidia-smi"):
        execute(["nvidia-smi"], log, seconds / 2)
    check(execute([sys.executable, "-m", "ipt_fast.cli", "info"], log, seconds), log, "ipt-fast info ")
    return f"{device_name(proof.device)}, torch {torch.__version__}"


def tests_on_gpu(proof: Proof, seconds: float) -> str:
    """Run the tests that need a GPU."""
    options = ["--ignore=tests/kernels", "-m", "gpu"]
    return pytest_files([ROOT / "tests"], proof.log("tests"), seconds, options)


def kernel_tests(proof: Proof, seconds: float) -> str:
    """Compare every kernel with its reference: on the GPU, or in Triton's interpreter."""
    files = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    interpreter = proof.device.type == "cpu"
    env = {"TRITON_INTERPRET": "1" if interpreter else "0"}
    line = pytest_files(files, proof.log("kernels"), seconds, ["-m", "not slow"] if interpreter else [], env)
    return f"{line}, {'in the interpreter' if interpreter else 'on the GPU'}"


def training(proof: Proof, seconds: float) -> str:
    """Run ``train.py`` on photos, with a trace of one step; data stall and speed from its own log."""
    log, out = proof.log("training"), proof.work / "run"
    small = ["--preset", "tiny", "--set", "steps=10", "batch_size=4", "log_every=2"]
    large = ["--preset", "base", "--set", "steps=150", "batch_size=64", "log_every=10"]
    command = [sys.executable, "train.py", "--data", str(proof.photos()), "--out", str(out), "--profile", "1"]
    code = execute([*command, *(small if proof.small else large)], log, seconds)
    if (out / "log.jsonl").exists():
        shutil.copyfile(out / "log.jsonl", proof.folder / "training.jsonl")
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        proof.found["training"] = summarise(lines, 4 if proof.small else _WARM_UP_STEPS)
    if (out / "trace_rank0.json").exists():
        packed = proof.folder / "trace.json.gz"
        packed.write_bytes(gzip.compress((out / "trace_rank0.json").read_bytes()))
        proof.found["trace"] = heaviest(packed)
    check(code, log, "train.py ")
    if missing := [name for name in ("training", "trace") if not proof.found.get(name)]:
        raise StageError(f"train.py left nothing to read for: {', '.join(missing)}")
    found = proof.found["training"]
    return f"{found['patches_per_s']:,.1f} patches/s, data stall {found['data_stall_pct']:.2f} %"


def csrc(proof: Proof, seconds: float) -> str:
    """Compare the CUDA C++ attention with float64, forward and backward; in small another backend stands in."""
    log, path, impl = proof.log("csrc"), proof.folder / "csrc.json", "cpu" if proof.small else "cuda"
    command = [sys.executable, "-m", "bench.proof.csrc", "--device", proof.device.type, f"--json={path}"]
    path.unlink(missing_ok=True)  # of an earlier proof
    code = execute([*command, "--impl", impl], log, seconds)
    if code != 1 or not path.exists():
        check(code, log)
    measured = json.loads(path.read_text())
    if measured["why_not"]:
        return f'not run: impl="{impl}" {measured["why_not"]}'
    cases = measured["cases"]
    if bad := len(cases) - sum(map(passed, cases)):
        raise StageError(f'impl="{impl}": {bad} of {len(cases)} cases failed; see {log.name}')
    worst = max(row["share"] for row in cases)
    return f'impl="{impl}": {len(cases)} cases, at most {worst:.2f} of the error that is allowed'


def v100_path(device: torch.device) -> dict[str, list[str]]:
    """Return op -> what a V100 would take for float16, best first, of what can serve on ``device``."""
    path = {}
    for op in OPS:
        status = importlib.import_module(f"ipt_fast.ops.{op}").backend_status
        with assume(GPUS["v100"].capability):
            there = status("cuda", torch.float16)
        here = status(device, torch.float16)
        path[op] = [name for name, why in there.items() if why is None and here[name] is None]
    return path


def v100(proof: Proof, seconds: float) -> str:
    """Train 20 steps in fp16 with all ops forced to what a V100 takes; with each of its two ways of attention."""
    log, path, steps = proof.log("v100"), v100_path(proof.device), 2 if proof.small else 20
    lines = []
    ways = [name for name in path["patch_attention"] if name in ("cuda", "sdpa")]
    for attention in ways:
        out = proof.work / f"v100_{attention}"
        impl = ",".join(f"{op}={attention if op == 'patch_attention' else names[0]}" for op, names in path.items())
        command = [sys.executable, "train.py", "--data", str(proof.photos()), "--out", str(out)]
        command += ["--preset", "tiny" if proof.small else "base", "--set", f"steps={steps}", "log_every=1"]
        command += ["batch_size=4", "precision=fp32"] if proof.small else ["batch_size=32", "precision=fp16"]
        check(execute(command, log, seconds / len(ways), {"IPT_FAST_IMPL": impl}), log, f"{impl}: train.py ")
        records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses = [record["loss"] for record in records]
        if len(records) != steps or records[-1]["skipped"] or not all(map(math.isfinite, losses)):
            raise StageError(
                f"{impl}: {len(records)} of {steps} steps, {records[-1]['skipped']} skipped, losses {losses}"
            )
        lines.append(f"{attention} loss {losses[0]:.2f} to {losses[-1]:.2f}")
    return f"{steps} steps in {'fp32' if proof.small else 'fp16'}: {'; '.join(lines)}"


def decoding(proof: Proof, seconds: float) -> str:
    """Measure both loaders' crops a second; compare DALI's pixels with the PyTorch loader's."""
    log, path = proof.log("decoding"), proof.folder / "decoding.json"
    command = [sys.executable, "-m", "bench.proof.decode", str(proof.photos()), "--device", proof.device.type]
    check(
        execute([*command, f"--seconds={0.5 if proof.small else seconds / 10:.1f}", f"--json={path}"], log, seconds),
        log,
    )
    proof.found["decoding"] = measured = json.loads(path.read_text())
    return "; ".join(
        f"{row['loader']}: {row['why_not']}" if "why_not" in row else f"{row['loader']}: {row['crops_per_s']:,.0f}/s"
        for row in measured
    )


def check_of(name: str) -> Callable[[Proof, float], str]:
    """Return the stage that runs a check of bench/proof/check.py and judges its rows."""

    def stage(proof: Proof, seconds: float) -> str:
        log, path = proof.log(name), proof.folder / f"{name}.jsonl"
        path.unlink(missing_ok=True)  # of an earlier proof
        command = [sys.executable, "-m", "bench.proof.check", name, "--device", proof.device.type, f"--rows={path}"]
        code = execute([*command, *(["--small"] if proof.small else [])], log, seconds)
        rows = read_rows(path)
        proof.found.setdefault("checks", {})[name] = [asdict(row) for row in rows]
        failed = [row for row in rows if row.passed is False]
        late = ", then out of time" if code is None else ""
        if failed:
            raise StageError(f"{len(failed)} of {len(rows)} failed{late}: {failed[0].case}: {failed[0].found}")
        if not rows or code not in (0, None):
            check(code, log)
            raise StageError("no result")
        if code is None:
            raise StageError(f"out of time after {len(rows)} results, all of them good")
        idle = [row for row in rows if row.passed is None]
        more = f"; {len(idle)} not run: {idle[0].case}: {idle[0].found}" if idle else ""
        return f"{len(rows) - len(idle)} results, all good{more}"

    return stage


def warm(proof: Proof, seconds: float) -> str:
    """Make every kernel's call once, in up to twelve processes, so that Triton's cache holds them all."""
    log, path = proof.log("warm"), proof.folder / "logs" / "warm.json"
    command = [sys.executable, "-m", "bench.proof.calls", "--device", proof.device.type, f"--json={path}"]
    path.unlink(missing_ok=True)
    code = execute([*command, *(["--small"] if proof.small else [])], log, seconds)
    if not path.exists():
        check(code, log)
    done = json.loads(path.read_text())
    if failed := [f"{name}: {error}" for name, _, error in done if error]:
        raise StageError(f"{len(failed)} of {len(done)} calls failed: {failed[0]}")
    return f"{len(done)} calls, {sum(took for _, took, _ in done):.0f} s of them side by side"


def sanitizer(proof: Proof, seconds: float) -> str:
    """Call every kernel once under NVIDIA's compute-sanitizer: memory out of bounds, then races."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return "not run: compute-sanitizer is not installed (it comes with the CUDA toolkit)"
    log, lines = proof.log("sanitizer"), []
    command = [sys.executable, "-m", "bench.proof.calls", "--once", "--device", proof.device.type]
    command += ["--small"] * proof.small
    for name in ("memcheck", "racecheck"):
        # Without PyTorch's own pool every tensor has an end that can be overrun.
        options = [f"--tool={name}", "--error-exitcode=9", "--kernel-name=kernel_substring=_kernel"]
        code = execute([tool, *options, *command], log, seconds / 2, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        if code is None and lines:
            return f"{'; '.join(lines)}; {name} not run to its end: out of time"
        check(code, log, f"{name}: ")
        lines.append(f"{name}: {last_line(log, 'SUMMARY') or 'nothing found'}")
    return "; ".join(lines)


def ceilings(proof: Proof, seconds: float) -> str:
    """Measure once what all benchmarks are a share of, and begin their results."""
    log, path = proof.log("ceilings"), proof.work / "ceilings.json"
    command = [sys.executable, "-m", "bench.ceilings", "--device", proof.device.type, f"--json={path}"]
    check(execute([*command, *(["--small"] if proof.small else [])], log, seconds), log)
    measured = Ceilings(**json.loads(path.read_text()))
    save_run(Run(machine(proof.device), measured, [], []), proof.folder)
    rates = ", ".join(f"{name} {rate / 1e12:,.2f} TFLOP/s" for name, rate in measured.matmul_rate.items())
    return f"copy {measured.copy_bandwidth / 1e9:,.0f} GB/s; matmul {rates}"


def bench_of(*names: str) -> Callable[[Proof, float], str]:
    """Return the stage that adds the results of some benchmark files."""

    def stage(proof: Proof, seconds: float) -> str:
        log, results = proof.log(f"bench_{names[0]}"), proof.folder / "results.json"
        if not results.exists():  # this stage alone was asked for
            ceilings(proof, seconds / 4)
        known = read_run(proof.folder)
        command = [sys.executable, "-m", "bench.suite", "--device", proof.device.type, "--out", str(proof.folder)]
        command += ["--add", "--budget", f"{0.85 * seconds:.0f}", *(f"--only={name}" for name in names)]
        code = execute([*command, *(["--small"] if proof.small else [])], log, seconds)
        run = read_run(proof.folder)
        new, not_measured = run.results[len(known.results) :], run.not_measured[len(known.not_measured) :]
        line = f"{len(new)} results, {len(not_measured)} not measured"
        if code is None:
            raise StageError(f"{line}; out of time")
        if code != 0:
            raise StageError(f"{line}; a benchmark failed: {last_line(log, 'FAILED|ERROR|bench:')}")
        return line

    return stage
