"""Tables 1 to 4 of the paper ("Pre-Trained Image Processing Transformer", CVPR 2021), for a look beside our own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipt_fast.arguments import checked


@dataclass(frozen=True)
class Cell:
    """One row of ours: a test set and a task; ``paper`` holds the published figures by method, PSNR-Y in dB."""

    table: int
    image_set: str
    task: str
    paper: Mapping[str, float]


TITLES = {
    1: "Table 1: super-resolution, PSNR-Y in dB",
    2: "Table 2: colour denoising, PSNR-Y in dB",
    3: "Table 3: deraining, PSNR-Y in dB",
    4: "Table 4: noise levels never trained on, PSNR-Y in dB",
}

# The names that a set goes by on disk, lower case.
ALIASES = {
    "Set5": ("set5",),
    "Set14": ("set14",),
    "B100": ("b100", "bsd100", "bsds100"),
    "Urban100": ("urban100",),
    "CBSD68": ("cbsd68", "bsd68"),
    "Rain100L": ("rain100l",),
}


def _rows(table: int, task: str, sets: Sequence[str], **methods: Sequence[float]) -> list[Cell]:
    figures = [dict(zip(methods, values, strict=True)) for values in zip(*methods.values(), strict=True)]
    return [Cell(table, name, task, paper) for name, paper in zip(sets, figures, strict=True)]


_SR = ("Set5", "Set14", "B100", "Urban100")
_NOISE = ("CBSD68", "Urban100")
CELLS: tuple[Cell, ...] = (
    *_rows(
        1, "sr2", _SR,
        EDSR=(38.11, 33.92, 32.32, 32.93), HAN=(38.27, 34.16, 32.41, 33.35), IPT=(38.37, 34.43, 32.48, 33.76),
    ),
    *_rows(
        1, "sr3", _SR,
        EDSR=(34.65, 30.52, 29.25, 28.80), HAN=(34.75, 30.67, 29.32, 29.10), IPT=(34.81, 30.85, 29.38, 29.49),
    ),
    *_rows(
        1, "sr4", _SR,
        EDSR=(32.46, 28.80, 27.71, 26.64), HAN=(32.64, 28.90, 27.80, 26.85), IPT=(32.64, 29.01, 27.82, 27.26),
    ),
    *_rows(2, "denoise30", _NOISE, DnCNN=(30.40, 30.28), RDN=(30.67, 31.69), IPT=(32.32, 33.75)),
    *_rows(2, "denoise50", _NOISE, DnCNN=(28.01, 28.16), RDN=(28.31, 29.29), IPT=(29.88, 31.12)),
    *_rows(3, "derain", ("Rain100L",), input=(26.90,), RCDNet=(40.00,), IPT=(41.62,)),
    *_rows(4, "denoise10", _NOISE, DnCNN=(36.31, 36.21), RDN=(36.47, 36.69), IPT=(38.30, 39.07)),
    *_rows(4, "denoise70", _NOISE, DnCNN=(26.56, 26.17), RDN=(26.85, 27.63), IPT=(28.21, 28.80)),
)  # fmt: skip


@checked
def find_paper_sets(roots: Sequence[Path]) -> dict[str, Path]:
    """Return the paper's name of a set -> its folder: one of ``roots``, a folder in it, or in its ``benchmark``."""
    by_alias = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
    found: dict[str, Path] = {}
    for root in roots:
        inside = [p for folder in (root, root / "benchmark") if folder.is_dir() for p in sorted(folder.iterdir())]
        for place in (root, *inside):
            name = by_alias.get(place.resolve().name.lower())
            if name and place.is_dir():
                found.setdefault(name, place)
    return found


@checked
def table_rows(table: int, ours: Mapping[tuple[str, str], Mapping[str, float]], methods: Sequence[str]):
    """Return the columns and rows of one table: the paper's methods, then ours; empty where a figure is missing.

    Args:
        ours: (set, task) -> method -> PSNR-Y in dB.
        methods: our columns, in order.
    """
    if table not in TITLES:
        raise ValueError(f"table_rows: table must be one of {', '.join(map(str, TITLES))} (got {table})")
    cells = [cell for cell in CELLS if cell.table == table]
    published = list(cells[0].paper)
    columns = ["set", "task", *(f"{name} (paper)" for name in published), *methods]
    rows = []
    for cell in cells:
        mine = ours.get((cell.image_set, cell.task), {})
        figures = [f"{cell.paper[name]:.2f}" for name in published]
        rows.append([cell.image_set, cell.task, *figures, *(f"{mine[m]:.2f}" if m in mine else "" for m in methods)])
    return columns, rows
