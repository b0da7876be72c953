"""Image files of many formats with random damage, through the public reader and ``restore``."""

import io
import random
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ipt_fast import IPT, IPTConfig, prepare_for_inference, restore
from ipt_fast.io.images import read_rgb
from tests.api.world import photo
from tests.fuzz.verdict import AGREED, FaultError, refused

_KINDS = (
    ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "1"), ("JPEG", "RGB"),
    ("JPEG", "L"), ("JPEG", "CMYK"), ("TIFF", "RGB"), ("TIFF", "F"), ("TIFF", "LA"), ("WEBP", "RGB"), ("WEBP", "RGBA"),
    ("BMP", "RGB"), ("GIF", "P"), ("PPM", "RGB"), ("TGA", "RGB"), ("ICO", "RGBA"),
)  # fmt: skip
_EXACT = {("PNG", "RGB"), ("TIFF", "RGB"), ("BMP", "RGB"), ("PPM", "RGB"), ("TGA", "RGB")}


@cache
def _network():
    torch.manual_seed(0)
    config = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, tasks=("derain", "sr2"))
    return prepare_for_inference(IPT(config))


def _encoded(rng: random.Random, kind: str, mode: str) -> tuple[bytes, np.ndarray]:
    pixels = photo(rng.choice([1, 7, 12, 20]), rng.choice([1, 9, 16, 24]), rng.randrange(50))
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    options = {"exif": _exif(rng)} if kind in ("JPEG", "PNG", "WEBP") and rng.random() < 0.3 else {}
    if kind == "JPEG":
        options["progressive"] = rng.random() < 0.3
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue(), pixels


def _exif(rng: random.Random) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = rng.choice([1, 3, 6, 8, 0, 99])  # orientation
    return exif


def _damaged(rng: random.Random, data: bytes) -> bytes:
    part = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(part)) if part else 0
        kind = rng.choice(["flip", "flip", "cut", "insert", "zero", "drop", "start"])
        if kind == "flip" and part:
            part[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del part[place:]
        elif kind == "insert":
            part[place:place] = rng.randbytes(rng.randint(1, 40))
        elif kind == "zero":
            part[place : place + 20] = bytes(len(part[place : place + 20]))
        elif kind == "drop":
            del part[place : place + rng.randint(1, 30)]
        elif kind == "start" and len(part) > 40:
            part[rng.randrange(40)] = rng.randrange(256)
    return bytes(part)


def random_image(rng: random.Random) -> str:
    """Write a file, damage it in two of three cases, read it, and sometimes restore it."""
    kind, mode = rng.choice(_KINDS)
    whole, pixels = _encoded(rng, kind, mode)
    damaged = rng.random() < 2 / 3
    data = _damaged(rng, whole) if damaged else whole
    suffix = rng.choice([f".{kind.lower()}", ".png", ".jpg"])
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / f"photo{suffix}"
        path.write_bytes(data)
        try:
            image = read_rgb(path)
            restored = restore(_network(), path, "derain") if image.numel() < 3000 and rng.random() < 0.15 else None
        except Exception as error:
            if not damaged:
                raise FaultError(f"a whole {kind} {mode} is refused: {type(error).__name__}: {error}") from error
            return refused(error, [str(path)])
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise FaultError(f"read as {image.dtype} {list(image.shape)}")
    if restored is not None and restored.size != (image.shape[2], image.shape[1]):
        raise FaultError(f"restored to {restored.size}, read as {list(image.shape)}")
    upright = "exif" not in data[:200].decode("latin1").lower()
    if not damaged and upright and (kind, mode) in _EXACT and not np.array_equal(image.permute(1, 2, 0), pixels):
        raise FaultError(f"a whole {kind} {mode} is read with other pixels")
    return AGREED
