"""Where a named checkpoint lies: a file, the network that comes with the package, or one on the Hugging Face Hub."""

from pathlib import Path

from ipt_fast.checkpoint.hub import fetch_from_hub, is_on_hub
from ipt_fast.checkpoint.pretrained import PRETRAINED, pretrained_file


def located(path: str | Path) -> Path:
    """Return the file of a path, of "pretrained" or of hf://owner/name. Raises as the two functions called here."""
    if str(path) == PRETRAINED:
        return pretrained_file()
    return fetch_from_hub(path) if is_on_hub(path) else Path(path)
