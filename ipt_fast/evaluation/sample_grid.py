"""Pictures that a person looks at: input | output | clean, one row per photo, PSNR in the captions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.evaluation.held_out import HeldOutResult
from ipt_fast.io.images import to_uint8
from ipt_fast.io.write import write_image
from ipt_fast.tasks import get_task

GAP, CAPTION, TITLE = 8, 24, 34  # pixels
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


@checked(crop=1, zoom=1)
def sample_grid(results: Sequence[HeldOutResult], crop: int = 128, zoom: int = 2) -> Image.Image:
    """Return one task's results as one picture: a square of ``crop`` pixels from each photo, enlarged ``zoom`` times.

    Every pixel is repeated, not interpolated, so that what the model did can be seen. The square is the part of the
    photo with the most detail. The captions give PSNR-Y of the whole photo.

    Raises:
        ValueError: no results, or results of several tasks.
    """
    tasks = {r.task for r in results}
    if len(tasks) != 1:
        raise ValueError(f"sample_grid: needs results of one task, got {sorted(tasks) or 'none'}")
    task = get_task(tasks.pop())
    first = "bicubic" if task.kind == "sr" else "input"
    side, rows = crop * zoom, _one_a_photo(results)
    picture = Image.new("RGB", (3 * side + 4 * GAP, TITLE + len(rows) * (side + CAPTION + GAP)), _PAPER)
    draw = ImageDraw.Draw(picture)
    title, small = ImageFont.load_default(18), ImageFont.load_default(14)
    draw.text((GAP, 7), f"{task.name}: {first} | output | clean", _INK, title)
    for row, result in enumerate(rows):
        top = TITLE + row * (side + CAPTION + GAP)
        y, x = _most_detailed(result.gt, crop)
        captions = (
            f"{result.photo}, {first} {result.psnr_before:.2f} dB",
            f"output {result.psnr_after:.2f} dB ({result.psnr_after - result.psnr_before:+.2f})",
            "clean",
        )
        for column, (image, caption) in enumerate(zip((result.before, result.after, result.gt), captions, strict=True)):
            left = GAP + column * (side + GAP)
            tile = Image.fromarray(to_uint8(image[:, y : y + crop, x : x + crop]))
            picture.paste(tile.resize((side, side), Image.Resampling.NEAREST), (left, top))
            draw.text((left, top + side + 3), caption, _INK, small)
    return picture


@checked
def write_sample_grids(results: Sequence[HeldOutResult], folder: Path) -> list[Path]:
    """Write one PNG per task into ``folder``; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {task: folder / f"{task}.png" for task in dict.fromkeys(r.task for r in results)}
    for task, path in paths.items():
        write_image(sample_grid([r for r in results if r.task == task]), path)
    return list(paths.values())


def _one_a_photo(results: Sequence[HeldOutResult]) -> list[HeldOutResult]:
    """Where a photo was degraded several times, the draw of middling damage."""
    of_photo: dict[str, list[HeldOutResult]] = {}
    for result in results:
        of_photo.setdefault(result.photo, []).append(result)
    return [sorted(draws, key=lambda r: r.psnr_before)[len(draws) // 2] for draws in of_photo.values()]


def _most_detailed(image: Tensor, crop: int) -> tuple[int, int]:
    """Top left corner of the square with the most gradient; on a coarse grid, so that it stays put between tasks."""
    gray = image.mean(0)
    detail = gray.diff(dim=0, prepend=gray[:1]).abs() + gray.diff(dim=1, prepend=gray[:, :1]).abs()  # [H, W]
    window = (min(crop, gray.shape[0]), min(crop, gray.shape[1]))
    sums = torch.nn.functional.avg_pool2d(detail[None, None], window, stride=16)[0, 0]
    y, x = divmod(int(sums.argmax()), sums.shape[1])
    return y * 16, x * 16
