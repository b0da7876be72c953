"""A damage of your own: JPEG artefacts. Make pairs, fine-tune on them; the task of pairs is called "deblur".

``python new_task.py PHOTOS CHECKPOINT OUT``.

Any damage that a program can do to a photo works the same way; only ``damage`` changes.
"""

import io
import sys
from pathlib import Path

from PIL import Image

from ipt_fast.cli import main as ipt_fast


def damage(photo: Image.Image) -> Image.Image:
    """Return the photo as a JPEG of quality 10 shows it."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=10)
    return Image.open(buffer).convert("RGB")


def main(photos: str, checkpoint: str, out: str, *settings: str) -> int:
    """Write the pairs to OUT/pairs and fine-tune into OUT/jpeg; ``settings`` are those of ``--set``."""
    pairs = Path(out) / "pairs"
    for name in ("gt", "lq"):
        (pairs / name).mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(photos).glob("*.png")) + sorted(Path(photos).glob("*.jpg")):
        with Image.open(path) as image:
            photo = image.convert("RGB")
        photo.save(pairs / "gt" / f"{path.stem}.png")
        damage(photo).save(pairs / "lq" / f"{path.stem}.png")
    command = ["finetune", "deblur", "--init", checkpoint, "--pairs", str(pairs / "gt"), str(pairs / "lq")]
    return ipt_fast([*command, "--out", str(Path(out) / "jpeg"), *(["--set", *settings] if settings else [])])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
