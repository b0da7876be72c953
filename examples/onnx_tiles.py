"""A photo through an exported ONNX file, without this package: numpy, Pillow and onnxruntime.

First ``ipt-fast export CHECKPOINT --task denoise50 -o denoise50.onnx``, then
``python onnx_tiles.py denoise50.onnx photo.jpg restored.png``.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

WINDOW, OVERLAP = 48, 12


def starts(length: int) -> list[int]:
    """Return where windows begin that cover ``length`` pixels; the last one ends at the edge."""
    return sorted({*range(0, length - WINDOW, WINDOW - OVERLAP), length - WINDOW})


def main(program: str, source: str, target: str) -> None:
    """Average overlapping windows, weighted by a pyramid, so that no seam is seen."""
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    photo = np.asarray(Image.open(source).convert("RGB"), dtype=np.float32).transpose(2, 0, 1)  # [3, H, W], 0..255
    if min(photo.shape[1:]) < WINDOW:
        raise SystemExit(f"{source}: needs at least {WINDOW} pixels a side (got {photo.shape[2]} x {photo.shape[1]})")
    total, weights = None, None
    for y in starts(photo.shape[1]):
        for x in starts(photo.shape[2]):
            (out,) = session.run(None, {"x": photo[None, :, y : y + WINDOW, x : x + WINDOW]})
            r = out.shape[-1] // WINDOW  # the scale of the task
            ramp = np.minimum(np.arange(1, r * WINDOW + 1), np.arange(r * WINDOW, 0, -1)).astype(np.float32)
            weight = np.minimum.outer(ramp, ramp)
            if total is None:
                total = np.zeros((3, r * photo.shape[1], r * photo.shape[2]), np.float32)
                weights = np.zeros(total.shape[1:], np.float32)
            rows, columns = slice(r * y, r * (y + WINDOW)), slice(r * x, r * (x + WINDOW))
            total[:, rows, columns] += out[0] * weight
            weights[rows, columns] += weight
    result = np.clip(np.rint(total / weights), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(result).save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
