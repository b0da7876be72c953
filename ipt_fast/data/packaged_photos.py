"""Real photos that are already on the machine: those packaged in scikit-image, scikit-learn and matplotlib.

For the demo, which must run without a download. The held-out photos are never trained on.
"""

import importlib.util
import shutil
from pathlib import Path

from torch import Tensor

from ipt_fast.io.atomic import atomic_path
from ipt_fast.io.images import read_rgb

_PLACES = {
    "skimage": ("data", "scikit-image"),
    "sklearn": ("datasets/images", "scikit-learn"),
    "matplotlib": ("mpl-data/sample_data", "matplotlib"),
}
TRAIN = {
    "skimage": (
        *("astronaut.png", "brick.png", "camera.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
        *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
    ),
    "sklearn": ("flower.jpg",),
    "matplotlib": ("grace_hopper.jpg",),
}
HELD_OUT = {"skimage": ("chelsea.png", "coffee.png"), "sklearn": ("china.jpg",)}


def packaged_photos(choice: dict[str, tuple[str, ...]]) -> list[Path]:
    """Return the files of ``TRAIN`` or ``HELD_OUT``.

    Raises:
        FileNotFoundError: a package is not installed, or holds fewer photos than it used to.
    """
    paths = []
    for package, names in choice.items():
        folder, distribution = _PLACES[package]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                f'the demo takes photos from {distribution}, which is not installed: pip install "ipt-fast[demo]"'
            )
        for name in names:
            path = Path(spec.origin).parent / folder / name
            if not path.is_file():
                raise FileNotFoundError(f"the demo needs {path}, which this version of {distribution} does not hold")
            paths.append(path)
    return paths


def copy_training_photos(folder: Path) -> Path:
    """Copy the training photos into a folder that ``--data`` takes; files already there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in packaged_photos(TRAIN):
        target = folder / source.name
        if not target.exists():
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
    return folder


def held_out_photos() -> dict[str, Tensor]:
    """Read the held-out photos: name -> uint8 [3, H, W]."""
    return {path.stem: read_rgb(path) for path in packaged_photos(HELD_OUT)}
