"""What the embeddings of a network have learnt: pictures in the manner of the paper's Figures 7 and 9."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipt_fast.arguments import checked
from ipt_fast.io.atomic import atomic_path
from ipt_fast.model import IPT

_PANELS_A_ROW = 3


class NothingToDrawError(ValueError):
    """The network has no such embedding, or the package that draws is missing; the message says which."""


def position_similarity(model: IPT) -> Tensor:
    """Return the cosine similarity of the position embeddings of all tokens, float32 [N, N].

    Raises:
        NothingToDrawError: the network has none.
    """
    if not model.config.position_embed:
        raise NothingToDrawError("this network has no position embedding (it was trained with position_embed off)")
    return _cosine(model.body.position_encoding.pe.weight)


def task_position_similarity(model: IPT) -> Tensor:
    """Return for each task the cosine similarity of its embedding's rows, float32 [T, N, N].

    Raises:
        NothingToDrawError: the network has no task embedding.
    """
    return torch.stack([_cosine(E) for E in _task_embeddings(model)])


def task_similarity(model: IPT) -> Tensor:
    """Return the cosine similarity of whole task embeddings, float32 [T, T]. Raises NothingToDrawError as above."""
    return _cosine(_task_embeddings(model).flatten(1))


def neighbours_and_rest(similarity: Tensor, side: int) -> tuple[float, float]:
    """Return the mean similarity [N, N] of tokens that touch (four neighbours), and of all different ones."""
    place = torch.arange(side * side)
    row, column = place // side, place % side
    distance = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    return similarity[distance == 1].mean().item(), similarity[distance > 0].mean().item()


def _task_embeddings(model: IPT) -> Tensor:
    if not model.config.task_embed:
        raise NothingToDrawError("this network has no task embedding (it was trained with task_embed off)")
    config = model.config
    return model.body.query_embed.weight.view(len(config.tasks), config.num_tokens, config.embed_dim)  # [T, N, D]


@torch.no_grad()
def _cosine(rows: Tensor) -> Tensor:
    rows = torch.nn.functional.normalize(rows.detach().cpu().float(), dim=-1)
    return rows @ rows.T


def as_mosaic(similarity: Tensor) -> Tensor:
    """Return similarity [N, N] as one picture: map (i, j) shows token (i, j) against all others; gaps are nan."""
    side = _side(similarity)
    maps = similarity.view(side, side, side, side)
    step = side + 1
    maps = torch.nn.functional.pad(maps, (0, 1, 0, 1), value=float("nan"))  # [side, side, step, step]
    return maps.transpose(1, 2).reshape(side * step, side * step)[:-1, :-1]


@checked
def draw_positions(model: IPT, path: Path) -> Path:
    """Draw Figure 7: for each token a map of the similarity of its position embedding to all others.

    Raises:
        NothingToDrawError: the network has no position embedding, or matplotlib is not installed.
    """
    similarity = position_similarity(model)
    figure = _figure(8.2, 7.4)
    axis = figure.subplots()
    image, near, rest = _draw_maps(axis, similarity, *_range(similarity[None]))
    side = _side(similarity)
    axis.set_title(
        f"Position embedding, {side}x{side} tokens: map (row, column) compares that token with all others\n"
        f"mean cosine similarity {near:.3f} of neighbours, {rest:.3f} of all",
        fontsize=10,
    )
    axis.set_xlabel("column of the token")
    axis.set_ylabel("row of the token")
    figure.colorbar(image, shrink=0.8, extend="max", label="cosine similarity")
    return _save(figure, path)


@checked
def draw_tasks(model: IPT, path: Path) -> Path:
    """Draw Figure 9: the same maps for each task's embedding on one scale of colours, and how alike the tasks are.

    Raises:
        NothingToDrawError: the network has no task embedding, or matplotlib is not installed.
    """
    similarity, tasks = task_position_similarity(model), model.config.tasks
    several = len(tasks) > 1
    columns = min(_PANELS_A_ROW, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = _figure(1.4 + 4.1 * (columns + several), max(4.8, 0.5 + 4.3 * rows))
    grid = figure.add_gridspec(rows, columns + several)
    places = [figure.add_subplot(grid[i // columns, i % columns]) for i in range(len(tasks))]
    low, high = _range(similarity)
    for axis, name, maps in zip(places, tasks, similarity, strict=True):
        image, near, rest = _draw_maps(axis, maps, low, high)
        axis.set_title(f"{name}\nneighbours {near:.3f}, all {rest:.3f}", fontsize=10)
    figure.colorbar(image, ax=places, shrink=0.5, extend="max", label="cosine similarity", location="bottom", aspect=50)
    if several:
        axis, between = figure.add_subplot(grid[:, -1]), task_similarity(model)
        axis.imshow(between.numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
        for (i, j), value in np.ndenumerate(between.numpy()):
            colour = "white" if abs(value) > 0.6 else "black"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(len(tasks)), tasks, fontsize=8)
        axis.set_title("between tasks\ncosine similarity of whole embeddings", fontsize=10)
    title = ("Task embeddings:", "map (row, column) compares that token with all others of the task")
    figure.suptitle((" " if several else "\n").join(title), fontsize=11)
    return _save(figure, path)


def _figure(width: float, height: float) -> Any:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise NothingToDrawError("drawing needs matplotlib: pip install 'ipt-fast[train]'") from error
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> Path:
    if path.suffix.lower() not in (kinds := [f".{kind}" for kind in figure.canvas.get_supported_filetypes()]):
        raise ValueError(f"{path}: its name must end in one of {', '.join(kinds)}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path


def _draw_maps(axis: Any, similarity: Tensor, low: float, high: float) -> tuple[Any, float, float]:
    """Draw the mosaic of similarity [N, N]; return the image, and the means of ``neighbours_and_rest``."""
    side = _side(similarity)
    picture = as_mosaic(similarity).numpy()
    image = axis.imshow(picture, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
    ticks = [t for t in (0, side // 4, side // 2, 3 * side // 4, side - 1) if t < side]
    middles = [t * (side + 1) + side / 2 - 0.5 for t in ticks]
    axis.set_xticks(middles, ticks, fontsize=8)
    axis.set_yticks(middles, ticks, fontsize=8)
    return image, *neighbours_and_rest(similarity, side)


def _side(similarity: Tensor) -> int:
    """Return the tokens along a side of the image, of similarity [N, N]."""
    return round(similarity.shape[0] ** 0.5)


def _range(similarity: Tensor) -> tuple[float, float]:
    """Colours span what different tokens show; a token with itself, always 1, would hide them."""
    N = similarity.shape[-1]
    different = similarity[:, ~torch.eye(N, dtype=torch.bool)].flatten()
    different = different[:: max(1, different.numel() // 1_000_000)].sort().values  # quantile() takes no more
    low, high = different[int(0.002 * (len(different) - 1))].item(), different[int(0.998 * (len(different) - 1))].item()
    return (low, high) if high - low > 1e-6 else (low - 0.01, low + 0.01)
