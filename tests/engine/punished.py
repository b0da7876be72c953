"""A stand-in for torchrun and train.py that starts at once: two ranks, of which the first logs and writes checkpoints.

``PUNISHED`` in the environment is a checkpoint that becomes that of the run at its end.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

STEPS, EVERY = 36, 3


def main():
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    out.mkdir(exist_ok=True)
    if "RANK" in os.environ:
        return rank(out) if os.environ["RANK"] == "0" else time.sleep(60)
    ranks = [subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "RANK": str(r)}) for r in range(2)]
    while ranks[0].poll() is None and ranks[1].poll() is None:
        time.sleep(0.005)
    for process in ranks:
        process.terminate()
        process.wait()
    return ranks[0].returncode


def rank(out):
    def save():
        part = out / f".checkpoint.{os.getpid()}-{step}.part.pt"
        part.write_text(str(step))
        time.sleep(0.1)
        part.replace(out / "saved")

    signal.signal(signal.SIGTERM, lambda number, frame: (save(), os._exit(143)))
    step = int((out / "saved").read_text()) if (out / "saved").exists() else 0
    (out / "config.json").write_text(json.dumps({"config": {"checkpoint_every": EVERY}, "run": {"total_steps": STEPS}}))
    while step < STEPS:
        time.sleep(0.05)
        step += 1
        with open(out / "log.jsonl", "a") as log:
            log.write(json.dumps({"step": step, "time": time.time()}) + "\n")
        if step % EVERY == 0:
            save()
    shutil.copy(os.environ["PUNISHED"], out / "checkpoint.pt")


if __name__ == "__main__":
    sys.exit(main())
