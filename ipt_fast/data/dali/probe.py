"""Whether DALI's GPU decoder can be relied on here: it decodes a batch in a process of its own first.

There are reports of GPUs on which its region decode fails, and takes the process along.
"""

import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ipt_fast.data.source import CropSource

COMMAND = (sys.executable, "-m", "ipt_fast.data.dali.probe")
# Mean difference of a crop from the CPU's, of 255: decoders round differently; another region differs by tens.
_TOLERANCE = 2.0


def gpu_decoder_fault(source: CropSource, command: Sequence[str] = COMMAND, seconds: float = 120) -> str | None:
    """Return None where the GPU decodes the first batch of ``source`` as the CPU does, otherwise what is wrong.

    Args:
        source: of a few photos.
        command: is given the names of two files, a pickled source and the crops to write, uint8 [B, 3, S, S] (.npy).
        seconds: that it may take.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, crops = Path(folder, "source.pickle"), Path(folder, "crops.npy")
        given.write_bytes(pickle.dumps(source))
        try:
            done = subprocess.run([*command, given, crops], capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"the GPU decoder did not come to an end within {seconds:g} s"
        if done.returncode:
            said = done.stderr.strip().splitlines() or [""]
            code = done.returncode
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}: {said[-1]:.200}"
            return f"the GPU decoder died in a trial ({how})"
        theirs = torch.from_numpy(np.load(crops))
    ours = source[0].batch.gt
    if theirs.shape != ours.shape:
        return f"the GPU decoder gave crops of another shape in a trial: {list(theirs.shape)}, not {list(ours.shape)}"
    difference = float((theirs.float() - ours.float()).abs().mean((1, 2, 3)).max())
    if difference > _TOLERANCE:
        return f"the GPU decoder gave other pixels than the CPU in a trial, {difference:.1f} of 255 apart on average"
    return None


def _decode(given: str, crops: str) -> None:
    from ipt_fast.data.dali.loader import DaliLoader

    source = pickle.loads(Path(given).read_bytes())
    loader = DaliLoader(source, workers=1, prefetch=1, device=torch.device("cuda"))
    np.save(crops, next(loader).gt.cpu().numpy())
    loader.close()


if __name__ == "__main__":
    _decode(*sys.argv[1:])
