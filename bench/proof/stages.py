"""The stages of the proof. Each returns one line on what it found, or raises ``StageError``."""

import gzip
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import ROOT
from bench.ceilings import device_name
from bench.proof.photos import write_photos
from bench.proof.run import StageError, check, execute, last_line, pytest_files
from bench.proof.training import heaviest, summarise

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
        if "photos" not in self.found:
            self.found["photos"] = write_photos(folder, 48 if self.small else 480)
        return folder

    def close(self) -> None:
        """Remove what is not kept."""
        self._temporary.cleanup()


@dataclass(frozen=True)
class Stage:
    """``seconds`` are its budget, and ``run`` keeps to it: on a GPU and, in small, on a CPU."""

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


def decoding(proof: Proof, seconds: float) -> str:
    """Measure both loaders' crops a second; compare DALI's pixels with the PyTorch loader's."""
    log, path = proof.log("decoding"), proof.folder / "decoding.json"
    command = [sys.executable, "-m", "bench.proof.decode", str(proof.photos()), "--device", proof.device.type]
    check(execute([*command, f"--seconds={seconds / 10:.1f}", f"--json={path}"], log, seconds), log)
    proof.found["decoding"] = measured = json.loads(path.read_text())
    return "; ".join(
        f"{row['loader']}: {row['why_not']}" if "why_not" in row else f"{row['loader']}: {row['crops_per_s']:,.0f}/s"
        for row in measured
    )


def benchmarks(proof: Proof, seconds: float) -> str:
    """Measure the ceilings, then run every benchmark under them."""
    log = proof.log("benchmarks")
    command = [sys.executable, "-m", "bench.suite", "--device", proof.device.type, "--out", str(proof.folder)]
    command += ["--budget", f"{0.75 * seconds:.0f}", *(["--small"] if proof.small else [])]
    results = proof.folder / "results.json"
    results.unlink(missing_ok=True)  # of an earlier proof
    code = execute(command, log, seconds)
    if not results.exists():
        check(code, log)
    content = json.loads(results.read_text())
    proof.found["ceilings"] = content["ceilings"]
    line = f"{len(content['results'])} results, {len(content['not_measured'])} not measured"
    if code is None:
        raise StageError(f"{line}; out of time: the files after these are missing, and the plots")
    if code != 0:
        raise StageError(f"{line}; a benchmark failed: {last_line(log, 'FAILED|ERROR|bench:')}")
    return line


STAGES = (
    Stage("environment", "versions, driver, backends", 20, 15, environment),
    Stage("tests", "tests that need a GPU", 70, 25, tests_on_gpu),
    Stage("kernels", "kernel tests", 130, 50, kernel_tests),
    Stage("training", "train.py on photos, one step traced", 90, 45, training),
    Stage("decoding", "loaders, DALI against PyTorch", 50, 20, decoding),
    Stage("benchmarks", "ceilings and all benchmarks", 220, 80, benchmarks),
)
