"""The batch file for Slurm, with stand-ins for Slurm's commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRUN = """echo "$@" > srun
trap 'echo checkpoint >> said; exit 143' TERM
[ -z "$FAILS" ] || exit "$FAILS"
touch ready
for i in $(seq 600); do sleep 0.1; done"""
SCONTROL = """case "$1" in
show) echo node7; sleep 0.1; echo node9 ;;
*) echo "scontrol $*" >> said ;;
esac"""
SCANCEL = """echo "scancel $*" >> said
kill -TERM "$(cat srun.pid)" """


@pytest.fixture
def submit(tmp_path):
    """Return a function that starts the batch file as Slurm would on the first node of job 20077."""
    started = []

    def submit(*arguments, **env):
        for name, body in (("srun", "echo $$ > srun.pid\n" + SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
            (tmp_path / name).mkdir()
            command = tmp_path / name / name
            command.write_text(f"#!/bin/bash\n{body}\n")
            command.chmod(0o755)
        path = os.pathsep.join(
            [*(str(tmp_path / name) for name in ("srun", "scontrol", "scancel")), os.environ["PATH"]]
        )
        job = {"SLURM_JOB_ID": "20077", "SLURM_JOB_NODELIST": "node[7,9]", "SLURM_JOB_NUM_NODES": "2", "PATH": path}
        place = tmp_path / "job"
        place.mkdir()
        command = ["bash", str(ROOT / "scripts/slurm/pretrain.sbatch"), *arguments]
        started.append(subprocess.Popen(command, cwd=place, env={**os.environ, "FAILS": "", **job, **env}))
        return started[0], place

    yield submit
    for process in started:
        process.kill()
        process.wait()


def test_torchrun_is_started_on_every_node(submit):
    process, place = submit("--data", "photos of mine", "--out", "runs/base", FAILS="5", RANKS_PER_NODE="4")
    assert process.wait(20) == 5  # a run that fails is not put back into the queue
    assert not (place / "said").exists()
    words = (place / "srun").read_text().split()
    assert words[:2] == ["--ntasks-per-node=1", "torchrun"]
    assert {"--nnodes=2", "--nproc_per_node=4", "--rdzv_backend=c10d", "--rdzv_id=20077"} <= set(words)
    assert "--rdzv_endpoint=node7:20077" in words
    assert " ".join(words).endswith("train.py --data photos of mine --out runs/base --resume auto")


def test_before_the_time_limit_the_job_goes_back_into_the_queue(submit):
    process, place = submit("--data", "photos", "--out", "runs/base")
    deadline = time.monotonic() + 20
    while not (place / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0
    said = (place / "said").read_text().splitlines()
    assert said == ["scancel --signal=TERM 20077", "checkpoint", "scontrol requeue 20077"]


def test_slurm_is_asked_for_the_signal():
    """The one above comes to the batch file alone (B:), early enough, and the job may be requeued."""
    options = [
        line.split(maxsplit=1)[1]
        for line in (ROOT / "scripts/slurm/pretrain.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH ")
    ]
    assert "--signal=B:USR1@300" in options and "--requeue" in options and "--ntasks-per-node=1" in options
