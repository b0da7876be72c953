"""The network that comes with the package: a file of weights, and beside it the sum that it is checked by."""

import hashlib
from pathlib import Path

from ipt_fast.checkpoint.errors import CheckpointError

# Stands for it wherever a checkpoint is named.
PRETRAINED = "pretrained"
FOLDER = Path(__file__).parents[1] / "weights"
# As sha256sum writes it; bench/weights/pack.py writes both files.
SUM = FOLDER / "pretrained.sha256"


def pretrained_file() -> Path:
    """Return the path of the file in the package, once its sum is what it should be.

    Raises:
        FileNotFoundError: the package was installed without it.
        CheckpointError: it is not the file that was packed.
    """
    for needed in (SUM, SUM.with_suffix(".safetensors")):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed}: the weights that come with ipt-fast are not there; install it again, or name a checkpoint"
            )
    expected, found = SUM.read_text(encoding="ascii").split()[0], hashlib.sha256(needed.read_bytes()).hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{needed}: not the weights that ipt-fast was packed with (sha256 {found[:16]}..., expected "
            f"{expected[:16]}...); install it again, or name a checkpoint"
        )
    return needed
