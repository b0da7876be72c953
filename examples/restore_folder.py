"""Restore every photo of a folder with one prepared network: ``python restore_folder.py CHECKPOINT TASK FOLDER OUT``.

``ipt-fast restore`` does this and more (it keeps metadata, goes on after a broken file, shows progress); this is how it
is done from Python.
"""

import sys
from pathlib import Path

from PIL import Image

from ipt_fast import load_checkpoint, prepare_for_inference, restore


def main(checkpoint: str, task: str, folder: str, out: str) -> None:
    """Write OUT/<name>.png for every JPEG and PNG of the folder."""
    network = prepare_for_inference(load_checkpoint(checkpoint), task=task)
    Path(out).mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png")):
        with Image.open(path) as photo:
            result = restore(network, photo, task=task)  # of any size; RGB, or with the alpha channel that it had
        result.save(Path(out) / f"{path.stem}.png")
        print(f"{path.name}: {photo.size} -> {result.size}")


if __name__ == "__main__":
    main(*sys.argv[1:])
