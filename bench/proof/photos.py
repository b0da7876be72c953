"""A folder of JPEG photos of ImageNet's usual size, with nothing to fetch: cut from packaged photos, or made."""

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from ipt_fast.data.packaged_photos import TRAIN, packaged_photos

SIZE = (500, 375)  # width, height


def write_photos(folder: Path, count: int) -> str:
    """Write ``count`` JPEG files of quality 90; return one line on where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    sources = [Image.open(path).convert("RGB") for path in found_photos()]
    for number in range(count):
        image = _cut(sources[number % len(sources)], random) if sources else _made(random)
        image.save(folder / f"{number:05}.jpg", quality=90)
    kind = f"cut from {len(sources)} packaged photos" if sources else "made of noise with a photo's spectrum"
    return f"{count} JPEG files of {SIZE[0]}x{SIZE[1]}, {kind}"


def found_photos() -> list[Path]:
    """Return the packaged photos of the packages that are here."""
    paths: list[Path] = []
    for package, names in TRAIN.items():
        with suppress(FileNotFoundError):
            paths += packaged_photos({package: names})
    return paths


def _cut(source: Image.Image, random: np.random.Generator) -> Image.Image:
    # A box of the same proportions somewhere in the photo, at 0.6 to 1 of its size.
    width, height = SIZE
    most = min(source.width / width, source.height / height)
    scale = most * random.uniform(0.6, 1.0)
    w, h = scale * width, scale * height
    left, top = random.uniform(0, source.width - w), random.uniform(0, source.height - h)
    return source.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def _made(random: np.random.Generator) -> Image.Image:
    # Amplitudes fall with 1 / frequency, as in photos; the channels share most of it.
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * random.random((4, *frequency.shape)))
    planes = np.fft.irfft2(phases / frequency, s=(height, width))  # [4, H, W]
    planes /= planes.std(axis=(1, 2), keepdims=True)
    rgb = np.moveaxis(planes[0] + 0.3 * planes[1:], 0, -1)  # [H, W, 3]
    return Image.fromarray(np.clip(128 + 50 * rgb, 0, 255).astype(np.uint8))
