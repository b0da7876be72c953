"""A photo through an exported ONNX file, without this package: numpy, Pillow and onnxruntime.

First ``ipt-fast export CHECKPOINT --task denoise50 -o denoise50.onnx``, then
``python onnx_tiles.py denoise50.onnx photo.jpg restored.png``. Window, range and dtype are read from the file.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

OVERLAP = 12


def starts(length: int, window: int) -> list[int]:
    """Return where windows begin that cover ``length`` pixels; the last one ends at the edge."""
    return sorted({*range(0, length - window, window - OVERLAP), length - window})


def main(program: str, source: str, target: str) -> None:
    """Average overlapping windows, weighted by a pyramid, so that no seam is seen."""
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    window, top, dtype = int(about["window"]), int(about["range"]), about["dtype"]
    photo = np.asarray(Image.open(source).convert("RGB"), dtype=np.float32).transpose(2, 0, 1)  # [3, H, W]
    photo = (photo * (top / 255)).astype(dtype)
    if min(photo.shape[1:]) < window:
        raise SystemExit(f"{source}: needs at least {window} pixels a side (got {photo.shape[2]} x {photo.shape[1]})")
    total, weights = None, None
    for y in starts(photo.shape[1], window):
        for x in starts(photo.shape[2], window):
            (out,) = session.run(None, {"x": photo[None, :, y : y + window, x : x + window]})
            r = out.shape[-1] // window  # the scale of the task
            ramp = np.minimum(np.arange(1, r * window + 1), np.arange(r * window, 0, -1)).astype(np.float32)
            weight = np.minimum.outer(ramp, ramp)
            if total is None:
                total = np.zeros((3, r * photo.shape[1], r * photo.shape[2]), np.float32)
                weights = np.zeros(total.shape[1:], np.float32)
            rows, columns = slice(r * y, r * (y + window)), slice(r * x, r * (x + window))
            total[:, rows, columns] += out[0] * weight
            weights[rows, columns] += weight
    result = np.clip(np.rint(total / weights * (255 / top)), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(result).save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
