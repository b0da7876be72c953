"""A page to look at: for each image a slider between input, what the networks make of it, and the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from torch import Tensor

from ipt_fast.evaluation.score import Score, mean_scores
from ipt_fast.io.atomic import atomic_write
from ipt_fast.io.images import to_uint8
from ipt_fast.io.write import write_image

PAGE = "index.html"
_TRUTH = "ground truth"
_COLUMNS = {"psnr_y": ("PSNR-Y", ".2f"), "psnr_rgb": ("PSNR-RGB", ".2f"), "ssim_y": ("SSIM-Y", ".4f"),
            "lpips": ("LPIPS", ".4f"), "dists": ("DISTS", ".4f")}  # fmt: skip


@dataclass
class _Picture:
    """One image of a set: its size, and the file and the score of each method, the ground truth last."""

    size: tuple[int, int]
    files: dict[str, str] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)


class Gallery:
    """Pictures are written as they are added, so that none stays in memory; the page at the end.

    A folder that can be copied anywhere, or opened from the disk: nothing in it comes from elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures: dict[tuple[str, str, str], _Picture] = {}

    def add(self, score: Score, output: Tensor, gt: Tensor) -> None:
        """Add what a method made of an image, with its score; both float [1, 3, H, W], 0..255.

        Raises:
            OSError: a picture cannot be written.
        """
        key = (score.image_set, score.task, score.image)
        if key not in self.pictures:
            self.pictures[key] = _Picture(size=(gt.shape[-1], gt.shape[-2]))
            self._write(key, _TRUTH, gt)
        self._write(key, score.method, output)
        self.pictures[key].scores.append(score)

    def _write(self, key: tuple[str, str, str], method: str, image: Tensor) -> None:
        """Write one picture, named by numbers: names of images and checkpoints may hold anything."""
        picture = self.pictures[key]
        name = f"images/{list(self.pictures).index(key):04}/{len(picture.files)}.png"
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_image(to_uint8(image[0]), target, force=True)
        picture.files[method] = name

    def write(self) -> Path:
        """Write the page and return its path.

        Raises:
            OSError: it cannot be written; one that was there is as before.
        """
        groups: dict[tuple[str, str], list[str]] = {}
        for (image_set, task, image), picture in self.pictures.items():
            if picture.scores:
                groups.setdefault((image_set, task), []).append(_figure(image, picture))
        means = mean_scores([score for picture in self.pictures.values() for score in picture.scores])
        sections = [
            f"<h2>{_text(image_set)}, {_text(task)}: {len(figures)} image{'s' * (len(figures) != 1)}, mean</h2>\n"
            + _table([mean for mean in means if (mean.image_set, mean.task) == (image_set, task)], "means")
            + '<div class="grid" style="margin-top: 12px">\n'
            + "\n".join(figures)
            + "\n</div>"
            for (image_set, task), figures in groups.items()
        ]
        page = Template(files(__package__).joinpath("gallery.html").read_text(encoding="utf-8"))
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / PAGE, "w") as file:
            file.write(page.substitute(title="Restored images", sections="\n".join(sections)))
        return self.folder / PAGE


def _text(text: str) -> str:
    """Return HTML of a name, with escapes for what of a file's name is not UTF-8."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def _figure(image: str, picture: _Picture) -> str:
    methods = [score.method for score in picture.scores]
    left, right = (*methods, _TRUTH)[:2]
    width, height = picture.size
    name = _text(image)
    return f"""<figure style="--w: {width}; --h: {height}">
<div class="scroll"><div class="view">
<img class="left" src="{picture.files[left]}" alt="{_text(left)}" loading="lazy">
<img class="right" src="{picture.files[right]}" alt="{_text(right)}" loading="lazy">
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="{name}: where the line is">
<div class="bar"></div>
</div></div>
<div class="sides">{_select("left", left, picture, methods)}{_select("right", right, picture, methods)}</div>
<figcaption><b>{name}</b>
{_table(picture.scores)}</figcaption>
</figure>"""


def _select(side: str, chosen: str, picture: _Picture, methods: list[str]) -> str:
    options = "".join(
        f'<option value="{picture.files[method]}"{" selected" * (method == chosen)}>{_text(method)}</option>'
        for method in [*methods, _TRUTH]
    )
    return f'<select data-side="{side}" autocomplete="off" aria-label="{side} of the line">{options}</select>'


def _table(scores: Sequence[Score], kind: str = "") -> str:
    """Return a table with a row a method; columns that no score has are left out."""
    columns = {name: column for name, column in _COLUMNS.items() if any(getattr(s, name) is not None for s in scores)}
    head = "".join(f"<th>{title}</th>" for title, _ in columns.values())
    rows = "".join(
        f"<tr><td>{_text(score.method)}</td>"
        + "".join(f"<td>{getattr(score, name):{form}}</td>" for name, (_, form) in columns.items())
        + "</tr>\n"
        for score in scores
    )
    return f'<div class="scroll"><table class="{kind}"><tr><th></th>{head}</tr>\n{rows}</table></div>\n'
