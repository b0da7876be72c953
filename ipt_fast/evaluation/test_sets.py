"""Test sets on disk: which image is clean, which is its degraded partner, and that they belong together.

Layouts: EDSR, IPT and SwinIR (``HR``, ``LR_bicubic/X2``), BasicSR (``GTmod12``, ``LRbicx2``; ``GT``, ``LQ``), pairs of
folders (``rain``/``norain``, ``input``/``target``, ``blur``/``sharp``), pairs in one folder (``rain-001.png``,
``norain-001.png``), and a flat folder of clean images. Folders of a pair may hold folders of scenes (REDS, GoPro).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.io.images import read_rgb
from ipt_fast.io.pairs import PairError, match_pairs
from ipt_fast.io.scan import image_files
from ipt_fast.tasks import Task

_CLEAN = ("hr", "gt", "gtmod12", "norain", "target", "clean", "sharp", "groundtruth", "ground_truth", "original_png")
_DEGRADED = {  # {0}: the scale
    "sr": ("lr_bicubic/x{0}", "lr/x{0}", "lrbicx{0}", "lr_bicubic_x{0}", "lrx{0}", "lr_x{0}", "x{0}"),
    "derain": ("rain", "rainy", "input", "lq"),
    "denoise": ("noisy", "input", "lq"),
    "deblur": ("blur", "blurred", "input", "lq"),
}
_SIDE = 24
# Of 5,400 wrong pairs of Rain100L one in twenty is more alike than this, of its right pairs all are (0.83 and more).
_SAME_SCENE, _SAME_PHOTO = 0.6, 0.95


class TestSetError(ValueError):
    """A folder that is no test set of the task, or whose images do not go together; the message names them."""

    __test__ = False  # not a test of pytest's


@dataclass(frozen=True)
class Pair:
    """A clean image and its degraded partner, None where that is to be made."""

    name: str
    clean: Path
    degraded: Path | None


@dataclass(frozen=True)
class ImageSet:
    """The pairs of one test set, by name."""

    name: str
    pairs: tuple[Pair, ...]
    layout: str


@checked
def find_set(folder: Path, task: Task) -> ImageSet:
    """Find the test set in ``folder`` for ``task``.

    Super-resolution and noise need clean images only: where degraded ones are absent they are made.

    Raises:
        FileNotFoundError: no such folder.
        TestSetError: no images, no pairs where the task needs them, or images without a partner.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    # Folders by their names in lower case, so that LR_bicubic/X2 is lr_bicubic/x2.
    below = sorted(p for p in folder.iterdir() if p.is_dir())
    inside = [p for outer in below if outer.name.lower() in ("lr_bicubic", "lr") for p in sorted(outer.iterdir())]
    folders = {p.relative_to(folder).as_posix().lower(): p for p in below + inside if p.is_dir() and _images(p)}
    names = [name.format(task.scale) for name in _DEGRADED[task.kind]]
    clean, degraded = (next((folders[n] for n in kind if n in folders), None) for kind in (_CLEAN, names))
    name = folder.resolve().name
    if clean is not None and degraded is not None:
        layout = f"{clean.relative_to(folder)} and {degraded.relative_to(folder)}"
        return ImageSet(name, _match(clean, _images(clean), degraded, _images(degraded), task.scale), layout)
    if degraded is not None:
        raise TestSetError(
            f"{folder}: has {degraded.name} but no folder of clean images ({', '.join(_CLEAN[:6])}, ...)"
        )
    files = _images(clean) if clean else image_files(folder)
    if clean is None and task.kind == "derain":  # rain-001.png and norain-001.png side by side
        dry, rainy = ([p for p in files if p.stem.lower().startswith(start)] for start in ("norain", "rain"))
        if dry and rainy:
            return ImageSet(name, _match(folder, dry, folder, rainy, 1), "pairs in one folder")
    if not files:
        hint = f"; it has the folders {', '.join(p.name for p in below[:6])}" if below else ""
        raise TestSetError(f"{folder}: no images of a test set for {task.name}{hint}")
    if task.kind not in ("sr", "denoise"):
        raise TestSetError(
            f"{folder}: {task.name} needs pairs: a folder {' or '.join(names[:3])} beside one of clean images "
            f"({', '.join(_CLEAN[:6])})"
        )
    layout = "clean images, degraded here" if clean is None else f"{clean.name}, degraded here"
    return ImageSet(name, tuple(Pair(_name(p, clean or folder), p, None) for p in files), layout)


def _images(folder: Path) -> list[Path]:
    """List the images in a folder; where it has none itself, those of its scenes."""
    return image_files(folder) or image_files(folder, recursive=True)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _match(
    clean_folder: Path, clean: Sequence[Path], degraded_folder: Path, degraded: Sequence[Path], scale: int
) -> tuple[Pair, ...]:
    """Pairs by name, in the order of the clean images."""
    roots = {"gt_root": str(clean_folder), "lq_root": str(degraded_folder)}
    try:
        pairs = match_pairs([str(p) for p in clean], [str(p) for p in degraded], scale, **roots)
    except PairError as error:
        raise TestSetError(str(error)) from error
    return tuple(Pair(_name(Path(gt), clean_folder), Path(gt), Path(lq)) for gt, lq in sorted(pairs))


@checked
def read_pair(pair: Pair, task: Task) -> tuple[Tensor, Tensor | None]:
    """Read the clean and the degraded image, uint8 [3, H, W]; the clean one is cut to a multiple of the scale.

    Raises:
        OSError: one cannot be read.
        TestSetError: the sizes do not go together, or they show different scenes. The message names both files.
    """
    clean = read_rgb(pair.clean)
    r = task.scale
    if pair.degraded is None:
        height, width = (side // r * r for side in clean.shape[1:])
        if not height or not width:
            raise TestSetError(f"{pair.clean}: {clean.shape[2]}x{clean.shape[1]} is too small for {task.name}")
        return clean[:, :height, :width], None
    degraded = read_rgb(pair.degraded)
    sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (clean, degraded)]
    # Of 49 pixels some make 24 at half the size, some 25.
    if not all(c // r <= d <= -(-c // r) for c, d in zip(clean.shape[1:], degraded.shape[1:], strict=True)):
        raise TestSetError(
            f"{pair.clean} ({sizes[0]}) and {pair.degraded} ({sizes[1]}) do not go together: "
            f"{task.name} needs {'equal sizes' if r == 1 else f'a clean image {r} times as large'}"
        )
    height, width = (side // r for side in clean.shape[1:])
    clean, degraded = clean[:, : height * r, : width * r], degraded[:, :height, :width]
    needed = _SAME_PHOTO if task.kind == "sr" else _SAME_SCENE
    if (alike := likeness(clean, degraded)) < needed:
        raise TestSetError(
            f"{pair.clean} and {pair.degraded} show different scenes (likeness {alike:.2f}, needed {needed})"
        )
    return clean, degraded


def likeness(a: Tensor, b: Tensor) -> float:
    """Return the correlation of the gray thumbnails of two images [3, H, W]; 1 where one of them is flat."""
    side = min(_SIDE, *b.shape[1:])
    x, y = (F.adaptive_avg_pool2d(image.float().mean(0)[None], side).flatten() for image in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = x.norm() * y.norm()
    return 1.0 if scale < 1e-3 or min(x.std(), y.std()) < 2 else float(torch.dot(x, y) / scale)
