"""Pictures of the model card: what the packaged network makes of photos that it was not trained on.

python -m bench.weights.samples
"""

import sys
from pathlib import Path

from ipt_fast.checkpoint import load_checkpoint
from ipt_fast.data.packaged_photos import held_out_photos
from ipt_fast.evaluation.held_out import score_held_out
from ipt_fast.evaluation.sample_grid import sample_grid
from ipt_fast.io.write import write_image

FOLDER = Path(__file__).parents[2] / "docs"
TASKS = ("sr3", "derain", "denoise30")


def main() -> int:
    """Write one picture a task."""
    model, photos = load_checkpoint("pretrained"), held_out_photos()
    for task in TASKS:
        results = score_held_out(model, photos, (task,))
        write_image(sample_grid(results), FOLDER / f"model_card_{task}.png", force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
