"""Rain: a gray layer of bright streaks, added to the photo. Own streaks; streak_folder.py takes them from pictures.

The streaks' statistics are those of Rain100L (measured on its 100 pairs): median coverage 18.5 % (pixels above level
8), median level 19 and 95th percentile 58 where there is rain, layer standard deviation 12; one direction per image
within 35 degrees of vertical, streaks 20 to 55 pixels long with a Gaussian cross-section of sigma about 0.9 pixels.

The plane is divided into cells; each holds one streak or none. Everything about a streak follows from the image's seed
and its cell, so all streaks are drawn at once, and an image's top left corner gets the same rain whatever its size.
"""

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ipt_fast.arguments import Shape, checked
from ipt_fast.degradations.philox import RAIN_IMAGE, RAIN_STREAK, normal_pair, philox, uniform

CELL = 8  # side of a cell, pixels
MAX_HALF = 50.0  # half of the longest streak, pixels
MAX_WIDTH = 4.0  # the cross-section ends here, pixels from the centre line
REACH_Y, REACH_X = 56, 40  # cells further outside the image than this hold no streak that touches it
FIXED_POINT = 1 << 16  # levels are summed as whole multiples of 1/FIXED_POINT: the same sum in any order
_MAX_DEGREES, _SWAY_DEGREES = 35.0, 3.5  # of an image's direction; of a streak around it
_TAPS = 12  # pixels of one row that a streak can cover: 2 MAX_WIDTH / cos(38.5 degrees), and the ends
ROWS_AT_ONCE = 1 << 18  # rows of streaks drawn at once


class Streaks(NamedTuple):
    """K streaks: the image [K] they belong to, centre, half length and sigma in pixels, peak level, direction
    (cosine and sine of the angle from vertical); each [K].
    """

    image: Tensor
    y: Tensor
    x: Tensor
    half: Tensor
    sigma: Tensor
    level: Tensor
    cos: Tensor
    sin: Tensor


def draw_streaks(seeds: Tensor, height: int, width: int) -> Streaks:
    """Draw the streaks that touch images of that size, one image per seed [B]."""
    seeds = seeds[:, None, None]
    words = philox(seeds, 0, 0, RAIN_IMAGE)
    angle, length = normal_pair(words[0], words[1])  # [B, 1, 1]
    brightness, _ = normal_pair(words[2], words[3])
    density = uniform(philox(seeds, 1, 0, RAIN_IMAGE)[0]) * 0.0032 + 0.0014  # streaks a pixel
    angle = (angle * 14).clamp_(-_MAX_DEGREES, _MAX_DEGREES)
    length = 38 * (length.clamp_(-2.0, 2.0) * 0.38).exp_()
    brightness = 56 * (brightness * 0.45).exp_()

    rows = torch.arange(-REACH_Y // CELL, -(-(height + REACH_Y) // CELL), device=seeds.device)[:, None]
    columns = torch.arange(-REACH_X // CELL, -(-(width + REACH_X) // CELL), device=seeds.device)
    first = philox(seeds, columns, rows, RAIN_STREAK, 0)  # 4 x [B, rows, columns]
    there = uniform(first[0]) < density * CELL**2
    image, row, column = there.nonzero(as_tuple=True)  # [K]
    second = philox(seeds[image, 0, 0], columns[column], rows[row, 0], RAIN_STREAK, 1)  # 4 x [K]
    y = (row - REACH_Y // CELL + uniform(first[1][there])) * CELL
    x = (column - REACH_X // CELL + uniform(first[2][there])) * CELL
    half = (length[image, 0, 0] * (0.5 + uniform(second[0])) / 2).clamp_(max=MAX_HALF)
    sigma = 0.7 + 0.5 * uniform(second[1])
    # Kumaraswamy(1.1, 3.6): many faint streaks, few bright ones. The powers are written as exp and log because
    # torch.pow rounds the last few elements of a CPU tensor otherwise than the rest: streaks would depend on the batch.
    share = (1 - (uniform(second[2]).log_() / 3.6).exp_()).log_().div_(1.1).exp_()
    level = brightness[image, 0, 0] * 2 * share
    turn = (angle[image, 0, 0] + _SWAY_DEGREES * (2 * uniform(second[3]) - 1)) * (math.pi / 180)
    return Streaks(image, y, x, half, sigma, level, turn.cos(), turn.sin())


def draw_layers(streaks: Streaks, images: int, height: int, width: int) -> Tensor:
    """Sum the streaks in each image, float32 [B, H, W], levels."""
    total = torch.zeros(images * height * width, dtype=torch.int32, device=streaks.y.device)
    # A streak is drawn row by row: streaks are near vertical, so a row meets a few pixels of it.
    reach = streaks.half * streaks.cos + MAX_WIDTH * streaks.sin.abs()
    top = (streaks.y - reach).ceil().clamp(min=0).long()
    rows = ((streaks.y + reach).floor().clamp(max=height - 1).long() - top + 1).clamp(min=0)  # [K]
    which = torch.repeat_interleave(rows)  # [R] streak of each row
    y = torch.arange(len(which), device=rows.device) - (rows.cumsum(0) - rows - top)[which]  # [R]
    taps = torch.arange(_TAPS, device=rows.device)
    for part, y_part in zip(which.split(ROWS_AT_ONCE), y.split(ROWS_AT_ONCE), strict=True):
        image, centre_y, centre_x, half, sigma, level, cos, sin = (v[part, None] for v in streaks)  # [r, 1]
        dy = y_part[:, None] - centre_y
        x = (centre_x + dy * (sin / cos)).floor().long() - (_TAPS // 2 - 1) + taps  # [r, taps]
        dx = x - centre_x
        along, across = dy * cos + dx * sin, dx * cos - dy * sin
        taper = ((half - along.abs()) / (half * 0.5)).clamp_(0, 1)
        profile = (across * across / (sigma * sigma * -2)).exp_() * taper * level
        profile.masked_fill_((across.abs() >= MAX_WIDTH) | (x < 0) | (x >= width), 0.0)
        place = (image * height + y_part[:, None]) * width + x.clamp_(0, width - 1)
        total.index_add_(0, place.flatten(), (profile * FIXED_POINT).round_().to(torch.int32).flatten())
    return total.reshape(images, height, width).float().mul_(1 / FIXED_POINT)


@checked(height=1, width=1)
def rain_layers(seeds: Annotated[Tensor, Shape("B", "int64")], height: int, width: int) -> Tensor:
    """Return a rain layer per seed: float32 [B, H, W] on the seeds' device, levels to be added to all three channels.

    Deterministic on every device: the streaks' levels are summed as whole numbers.
    """
    if seeds.is_meta:
        raise ValueError("rain_layers: seeds must hold numbers, from which the number of streaks follows (got meta)")
    return draw_layers(draw_streaks(seeds, height, width), len(seeds), height, width)


@checked
def add_rain(clean: Annotated[Tensor, Shape("B 3 H W")], layers: Annotated[Tensor, Shape("B H W")]) -> Tensor:
    """Return ``clip(clean + r, 0, 255)``: clean uint8 [B, 3, H, W], layers [B, H, W] -> float32 [B, 3, H, W]."""
    return (clean + layers[:, None]).clamp_(0, 255)
