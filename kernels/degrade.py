"""From clean uint8 crops to (input, target) in float32: shrinking, noise, rain; each task writes its output once.

Bytes, for a crop of P pixels: 3P read, and 12P written for the target; 12P more for the noisy or rainy input, 12P / s^2
for the small one of super-resolution. Nothing else of that size moves: one pass over the output bytes a task.

- ``shrink``: whole-number weights and int32 sums, so no setting of the products (TF32) and no order can change a bit.
  Height, rounding, width and rounding happen on chip; the halo of a tile comes from the caches.
- ``add_noise``: about 340 instructions a pixel (ten rounds of Philox, two logarithms, two pairs of cosine and sine) for
  its 27 bytes: on an A100 or H100 arithmetic and memory are about even.
- ``add_rain``: in a 48 x 48 crop with what lies in reach, 320 cells, there are 63 streaks on average, and 18 touch it.
  ``streaks_kernel`` draws all cells of a batch and lists those that touch: 10 kB of list beside the crop's 62 kB.
  ``rain_kernel`` walks, for each tile of 16 x 16 pixels, the list of the cells in reach, which stays in L1: 6 streaks a
  pixel, about 250 instructions with the walk, again about even with the bytes. A single kernel would draw the 192 cells
  in reach of a tile nine times a crop; a tile as large as the crop would draw all of its 18 streaks on every pixel.

Random words are those of ``ipt_fast/degradations/philox.py``, and the formulas those of noise.py and rain.py there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NOISE, RAIN_IMAGE, RAIN_STREAK = (tl.constexpr(purpose) for purpose in range(3))  # as in philox.py
# As in rain.py: side of a cell, how far outside its streaks begin, end of the cross-section, fractions of a level.
CELL = tl.constexpr(8)
REACH_Y, REACH_X = tl.constexpr(56), tl.constexpr(40)
MAX_WIDTH, FIXED_POINT = tl.constexpr(4.0), tl.constexpr(65536.0)
_GROUP = tl.constexpr(16)  # cells side by side that share a list
_NUMBERS = tl.constexpr(8)  # float32 numbers of a streak


@triton.jit
def philox_words(seed, c0, c1, PURPOSE: tl.constexpr, PART: tl.constexpr):
    """Return four uint32 words of the key ``seed`` (int64 scalar) at the int32 counters c0, c1, PURPOSE, PART."""
    zero = c0 * 0
    return tl.philox(seed, c0, c1, zero + PURPOSE, zero + PART)


@triton.jit
def uniform(word):
    """Return a word as a float32 in (0, 1): the middle of one of 2^23 equal intervals."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def normal_pair(radius, angle):
    """Return two words as two independent standard normal float32 numbers (Box and Muller)."""
    r = tl.sqrt(tl.log(uniform(radius)) * -2.0)
    # Cosine and sine of a share of a turn: at most an eighth from a quarter of it, which is exact, then the polynomials
    # of Cephes. tl.cos and tl.sin each have a branch for huge angles, with an array in local memory.
    turn = uniform(angle)
    quarter = (turn * 4.0 + 0.5).to(tl.int32)
    t = (turn - quarter * 0.25) * 6.283185307179586
    z = t * t
    cos = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    sin = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * t + t
    cos, sin = tl.where(quarter % 2 == 1, sin, cos), tl.where(quarter % 2 == 1, cos, sin)
    return r * tl.where((quarter == 1) | (quarter == 2), -cos, cos), r * tl.where((quarter & 2) != 0, -sin, sin)


@triton.jit
def degrade_channel(CLEAN, INPUT, TARGET, level, mine):
    """Store clip(clean + level, 0, 255) and clean, of one channel; pointers to uint8, float32 and float32 pixels."""
    clean = tl.load(CLEAN, mask=mine, other=0).to(tl.float32)
    tl.store(INPUT, tl.clamp(clean + level, 0.0, 255.0, propagate_nan=tl.PropagateNan.ALL), mask=mine)
    tl.store(TARGET, clean, mask=mine)


@triton.jit
def noise_kernel(
    CLEAN,  # in: uint8 [B, 3, H, W], strides (x_batch, x_channel, x_row, x_column)
    SEEDS,  # in: int64 [B], dense
    INPUT,  # out: float32 [B, 3, H, W], dense
    TARGET,  # out: float32 [B, 3, H, W], dense
    sigma,
    x_batch, x_channel, x_row, x_column,
    W,
    pixels,  # H W
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add noise: one program makes BLOCK pixels of one image."""
    # Which pixels
    blocks = tl.cdiv(pixels, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    y, x = p // W, p % W

    # Draw the noise
    w0, w1, w2, w3 = philox_words(tl.load(SEEDS + b), x, y, NOISE, 0)
    red, green = normal_pair(w0, w1)
    blue, _ = normal_pair(w2, w3)

    # Load, add and store, channel by channel
    CLEAN += b * x_batch + y * x_row + x * x_column
    noise = (red, green, blue)
    for channel in tl.static_range(3):
        out = (b * 3 + channel) * pixels + p
        degrade_channel(CLEAN + channel * x_channel, INPUT + out, TARGET + out, noise[channel] * sigma, p < pixels)


@triton.jit
def streaks_kernel(
    SEEDS,  # in: int64 [B], dense
    STREAKS,  # out: float32 [B, cell_rows, groups, _GROUP, _NUMBERS], dense; of each group the first COUNTS are written
    COUNTS,  # out: int32 [B, cell_rows, groups], dense
    H,
    W,
    cell_rows,
    groups,
    ROWS: tl.constexpr,
):
    """List the streaks that touch the image: one program draws ROWS rows of _GROUP cells of one image.

    The numbers of a streak: y, x, half, 2 / half, -1 / (2 sigma^2), level, cos, sin.
    """
    blocks = tl.cdiv(cell_rows, ROWS)
    group = tl.program_id(0) % groups
    b = (tl.program_id(0) // groups // blocks).to(tl.int64)
    r = (tl.program_id(0) // groups % blocks) * ROWS + tl.arange(0, ROWS)
    seed = tl.load(SEEDS + b)

    # What the streaks of an image have in common
    w0, w1, w2, w3 = philox_words(seed, tl.full((), 0, tl.int32), tl.full((), 0, tl.int32), RAIN_IMAGE, 0)
    angle, length = normal_pair(w0, w1)
    brightness, _ = normal_pair(w2, w3)
    d0, _, _, _ = philox_words(seed, tl.full((), 1, tl.int32), tl.full((), 0, tl.int32), RAIN_IMAGE, 0)
    density = uniform(d0) * 0.0032 + 0.0014
    angle = tl.clamp(angle * 14, -35.0, 35.0)
    length = 38 * tl.exp(tl.clamp(length, -2.0, 2.0) * 0.38)
    brightness = 56 * tl.exp(brightness * 0.45)

    # One streak a cell
    row = r[:, None] - REACH_Y // CELL
    column = (group * _GROUP + tl.arange(0, _GROUP))[None, :] - REACH_X // CELL
    a0, a1, a2, _ = philox_words(seed, column, row, RAIN_STREAK, 0)  # [ROWS, _GROUP]
    b0, b1, b2, b3 = philox_words(seed, column, row, RAIN_STREAK, 1)
    y = (row + uniform(a1)) * CELL
    x = (column + uniform(a2)) * CELL
    half = tl.minimum(length * (0.5 + uniform(b0)) / 2, 50.0)
    sigma = 0.7 + 0.5 * uniform(b1)
    share = tl.exp(tl.log(tl.maximum(1 - tl.exp(tl.log(uniform(b2)) / 3.6), 0.0)) / 1.1)
    turn = (angle + 3.5 * (2 * uniform(b3) - 1)) * 0.017453292519943295
    cos, sin = tl.cos(turn), tl.sin(turn)

    # List those that are there and touch the image
    reach_y = half * cos + MAX_WIDTH * tl.abs(sin)
    reach_x = half * tl.abs(sin) + MAX_WIDTH * cos
    wet = (uniform(a0) < density * (CELL * CELL)) & (r < cell_rows)[:, None]
    wet = wet & (y + reach_y >= 0) & (y - reach_y < H) & (x + reach_x >= 0) & (x - reach_x < W)
    place = tl.cumsum(wet.to(tl.int32), 1) - 1
    bucket = (b * cell_rows + r) * groups + group  # [ROWS]
    tl.store(COUNTS + bucket, tl.sum(wet.to(tl.int32), 1), mask=r < cell_rows)
    STREAKS += (bucket[:, None] * _GROUP + place) * _NUMBERS
    numbers = (y, x, half, 2 / half, -0.5 / (sigma * sigma), brightness * 2 * share, cos, sin)
    for i in tl.static_range(_NUMBERS):
        tl.store(STREAKS + i, numbers[i], mask=wet)


@triton.jit
def rain_kernel(
    CLEAN,  # in: uint8 [B, 3, H, W], strides (x_batch, x_channel, x_row, x_column)
    LAYERS,  # in: the rain, float32 [B, H, W], dense; None: it is drawn from the list of ``streaks_kernel``
    STREAKS,  # in: as ``streaks_kernel`` writes them
    COUNTS,  # in
    INPUT,  # out: float32 [B, 3, H, W], dense
    TARGET,  # out: float32 [B, 3, H, W], dense
    x_batch, x_channel, x_row, x_column,
    H, W, cell_rows, groups,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Add rain: one program makes a tile of one image."""
    # Which pixels
    across, down = tl.cdiv(W, BLOCK_X), tl.cdiv(H, BLOCK_Y)
    b = (tl.program_id(0) // across // down).to(tl.int64)
    top = (tl.program_id(0) // across % down) * BLOCK_Y
    left = (tl.program_id(0) % across) * BLOCK_X
    y = (top + tl.arange(0, BLOCK_Y))[:, None]
    x = (left + tl.arange(0, BLOCK_X))[None, :]
    mine = (y < H) & (x < W)
    p = y * W + x

    # Load or draw the rain
    if LAYERS is not None:
        level = tl.load(LAYERS + b * H * W + p, mask=mine, other=0.0)
    else:
        # Levels are summed as whole numbers: an image's top left corner gets the same bits whatever its size
        total = tl.zeros((BLOCK_Y, BLOCK_X), tl.int32)
        last_row = tl.minimum((top + BLOCK_Y + 2 * REACH_Y) // CELL, cell_rows)
        last_group = tl.minimum(tl.cdiv(left + BLOCK_X + 2 * REACH_X, CELL * _GROUP), groups)
        for row in range(top // CELL, last_row):
            for group in range(left // (CELL * _GROUP), last_group):
                bucket = (b * cell_rows + row) * groups + group
                streak = STREAKS + bucket * (_GROUP * _NUMBERS)
                for _ in range(tl.load(COUNTS + bucket)):
                    middle_y, middle_x, half = tl.load(streak), tl.load(streak + 1), tl.load(streak + 2)
                    cos, sin = tl.load(streak + 6), tl.load(streak + 7)
                    reach_y = half * cos + MAX_WIDTH * tl.abs(sin) + BLOCK_Y / 2
                    reach_x = half * tl.abs(sin) + MAX_WIDTH * cos + BLOCK_X / 2
                    off_y = tl.abs(middle_y - (top + (BLOCK_Y - 1) / 2))
                    off_x = tl.abs(middle_x - (left + (BLOCK_X - 1) / 2))
                    if (off_y <= reach_y) & (off_x <= reach_x):
                        dy, dx = y - middle_y, x - middle_x
                        along = tl.abs(dy * cos + dx * sin)
                        aside = dx * cos - dy * sin
                        profile = tl.exp(aside * aside * tl.load(streak + 4)) * tl.load(streak + 5)
                        profile *= tl.clamp((half - along) * tl.load(streak + 3), 0.0, 1.0)
                        profile = tl.where(tl.abs(aside) < MAX_WIDTH, profile, 0.0)
                        total += (profile * FIXED_POINT + 0.5).to(tl.int32)
                    streak += _NUMBERS
        level = total.to(tl.float32) * (1 / FIXED_POINT)

    # Load, add and store, channel by channel
    CLEAN += b * x_batch + y * x_row + x * x_column
    for channel in tl.static_range(3):
        out = (b * 3 + channel) * H * W + p
        degrade_channel(CLEAN + channel * x_channel, INPUT + out, TARGET + out, level, mine)


@triton.jit
def mirrored(place, size):
    """Reflect at a symmetric border: ... 1 0 0 1 ... size-1 size-1 size-2 ..., for places less than 2 size outside."""
    place = place ^ (place >> 31)  # -1 - place where it is negative
    place = tl.minimum(place, 2 * size - 1 - place)
    return place ^ (place >> 31)


@triton.jit
def weight(tap, COUNT: tl.constexpr, SCALE: tl.constexpr):
    """Return the whole-number weight of tap 0 .. COUNT - 1, 16 SCALE^4 in all: the cubic kernel with a = -0.5."""
    D: tl.constexpr = 2 * SCALE
    u = tl.abs(2 * tap - (COUNT - 1))  # the distance is u / D low-resolution pixels
    near = (3 * u - 5 * D) * u * u + 2 * D * D * D
    far = ((5 * D - u) * u - 8 * D * D) * u + 4 * D * D * D
    return tl.where(u <= D, near, far)


@triton.jit
def rounded(total, SCALE: tl.constexpr):
    """Return the quotient of a sum and the sum of the weights, rounded half up and clamped to 0..255."""
    ALL: tl.constexpr = 16 * SCALE * SCALE * SCALE * SCALE
    return tl.minimum((tl.maximum(total, 0) + ALL // 2) // ALL, 255)  # the dividend is not negative


@triton.jit
def from_right(tile, STEPS: tl.constexpr, WIDTH: tl.constexpr):
    """Return for each lane of a row of ``tile`` [rows, WIDTH], the value of the lane STEPS to its right."""
    lane = tl.minimum(tl.arange(0, WIDTH) + STEPS, WIDTH - 1)
    return tl.gather(tile, tl.broadcast_to(lane[None, :], tile.shape), 1)


@triton.jit
def shrink_kernel(
    CLEAN,  # in: uint8 [B, 3, H, W], strides (x_batch, x_channel, x_row, x_column)
    LOW,  # out: float32 [B, 3, h, w], dense
    TARGET,  # out: float32 [B, 3, SCALE h, SCALE w], dense
    x_batch, x_channel, x_row, x_column,
    H, W,
    margin,  # low-resolution pixels that are cut off each side
    SCALE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, COPY_H: tl.constexpr, COPY_W: tl.constexpr,
):  # fmt: skip
    """Shrink: one program makes BLOCK_H x (BLOCK_W - 3) low-resolution pixels of one plane, and the target's there."""
    WIDTH: tl.constexpr = BLOCK_W - 3
    COUNT: tl.constexpr = 4 * SCALE - SCALE % 2  # taps: the kernel is zero two low-resolution pixels from its middle
    REACH: tl.constexpr = (COUNT - SCALE) // 2
    h, w = H // SCALE - 2 * margin, W // SCALE - 2 * margin
    across, down = tl.cdiv(w, WIDTH), tl.cdiv(h, BLOCK_H)
    plane = tl.program_id(0) // across // down
    top = (tl.program_id(0) // across % down) * BLOCK_H
    left = (tl.program_id(0) % across) * WIDTH
    CLEAN += (plane // 3).to(tl.int64) * x_batch + (plane % 3) * x_channel
    LOW += plane.to(tl.int64) * h * w
    TARGET += plane.to(tl.int64) * (h * w * SCALE * SCALE)

    # Store the target: also brings the tile into the cache
    columns = tl.arange(0, COPY_W)[None, :]
    tx = left * SCALE + columns
    for first in range(0, BLOCK_H * SCALE, COPY_H):
        ty = (top * SCALE + first + tl.arange(0, COPY_H))[:, None]
        mine = (ty < h * SCALE) & (tx < w * SCALE) & (columns < WIDTH * SCALE)
        pixels = tl.load(CLEAN + (ty + margin * SCALE) * x_row + (tx + margin * SCALE) * x_column, mask=mine, other=0)
        tl.store(TARGET + ty * (w * SCALE) + tx, pixels.to(tl.float32), mask=mine)

    # Compute. Columns in cells of SCALE: cell i begins where the taps of pixel i begin, so pixel i has its taps in
    # cells i to i + 3. Each cell's columns are made once, and enter four sums.
    lane = tl.arange(0, BLOCK_W)
    y, x = top + tl.arange(0, BLOCK_H), left + lane
    inside = (y < h)[:, None] & (x < w + 3)[None, :]
    sum0 = tl.zeros((BLOCK_H, BLOCK_W), tl.int32)
    sum1, sum2, sum3 = sum0, sum0, sum0
    for phase in range(SCALE):
        column = mirrored((x + margin) * SCALE + (phase - REACH), W) * x_column
        total = tl.zeros((BLOCK_H, BLOCK_W), tl.int32)
        for tap in range(COUNT):
            row = mirrored((y + margin) * SCALE + (tap - REACH), H) * x_row
            pixels = tl.load(CLEAN + row[:, None] + column[None, :], mask=inside, other=0)
            total += pixels.to(tl.int32) * weight(tap, COUNT, SCALE)
        made = rounded(total, SCALE)
        sum0 += made * weight(phase, COUNT, SCALE)
        sum1 += made * weight(phase + SCALE, COUNT, SCALE)
        sum2 += made * weight(phase + 2 * SCALE, COUNT, SCALE)
        sum3 += made * weight(phase + 3 * SCALE, COUNT, SCALE)

    # Add up the four cells of each pixel, and store
    sum0 += from_right(sum1, 1, BLOCK_W) + from_right(sum2, 2, BLOCK_W) + from_right(sum3, 3, BLOCK_W)
    mine = inside & ((lane < WIDTH) & (x < w))[None, :]
    tl.store(LOW + y[:, None] * w + x[None, :], rounded(sum0, SCALE).to(tl.float32), mask=mine)


def shrink_plan(scale: int) -> dict[str, int]:
    """Choose tile sizes and warps of ``shrink_kernel``: whole crops of 48 pixels lie side by side in one tile."""
    block_w = 64
    copy_w = triton.next_power_of_2((block_w - 3) * scale)
    return {"BLOCK_H": 16, "BLOCK_W": block_w, "COPY_H": 8, "COPY_W": copy_w, "num_warps": 8}


NOISE_PLAN = {"BLOCK": 256, "num_warps": 8}  # a pixel a thread: the loads and stores need no exchange
# Rain's products and sums are rounded one by one, as PyTorch's are: the cuts of the streaks fall on the same pixels.
STREAKS_PLAN = {"ROWS": 8, "num_warps": 4, "enable_fp_fusion": False}
# Each warp walks the list: the fewer, the less work.
RAIN_PLAN = {"BLOCK_Y": 16, "BLOCK_X": 16, "num_warps": 1, "enable_fp_fusion": False}


def shrink(clean: Tensor, scale: int, margin: int) -> tuple[Tensor, Tensor]:
    """Compute MATLAB's bicubic shrinking, and the crop of the target.

    clean uint8 [B, 3, H, W], any strides, H and W multiples of ``scale`` (2, 3 or 4); ``margin`` low-resolution pixels
    are cut off each side. Returns float32 [B, 3, h, w], whole numbers, and float32 [B, 3, scale h, scale w].
    """
    B, C, H, W = clean.shape
    h, w = H // scale - 2 * margin, W // scale - 2 * margin
    low = clean.new_empty((B, C, h, w), dtype=torch.float32)
    target = clean.new_empty((B, C, h * scale, w * scale), dtype=torch.float32)
    sizes = shrink_plan(scale)
    programs = B * C * triton.cdiv(h, sizes["BLOCK_H"]) * triton.cdiv(w, sizes["BLOCK_W"] - 3)
    shrink_kernel[(programs,)](clean, low, target, *clean.stride(), H, W, margin, SCALE=scale, **sizes)
    return low, target


def add_noise(clean: Tensor, seeds: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return clip(clean + N(0, sigma), 0, 255) and clean, float32 [B, 3, H, W]; clean uint8, seeds int64 [B]."""
    noisy, target = (torch.empty(clean.shape, dtype=torch.float32, device=clean.device) for _ in range(2))
    B, _, H, W = clean.shape
    programs = B * triton.cdiv(H * W, NOISE_PLAN["BLOCK"])
    noise_kernel[(programs,)](clean, seeds, noisy, target, sigma, *clean.stride(), W, H * W, **NOISE_PLAN)
    return noisy, target


def add_rain(clean: Tensor, seeds: Tensor, layers: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return clip(clean + layers, 0, 255) and clean, float32 [B, 3, H, W]; clean uint8.

    layers float32 [B, H, W], dense; None: they are drawn from seeds int64 [B].
    """
    rainy, target = (torch.empty(clean.shape, dtype=torch.float32, device=clean.device) for _ in range(2))
    B, _, H, W = clean.shape
    streaks, counts, cell_rows, groups = None, None, 0, 0
    if layers is None:
        cell_rows = triton.cdiv(H + 2 * REACH_Y.value, CELL.value)
        groups = triton.cdiv(W + 2 * REACH_X.value, CELL.value * _GROUP.value)
        counts = seeds.new_empty((B, cell_rows, groups), dtype=torch.int32)
        streaks = seeds.new_empty((B, cell_rows, groups, _GROUP.value, _NUMBERS.value), dtype=torch.float32)
        programs = B * groups * triton.cdiv(cell_rows, STREAKS_PLAN["ROWS"])
        streaks_kernel[(programs,)](seeds, streaks, counts, H, W, cell_rows, groups, **STREAKS_PLAN)
    programs = B * triton.cdiv(H, RAIN_PLAN["BLOCK_Y"]) * triton.cdiv(W, RAIN_PLAN["BLOCK_X"])
    rain_kernel[(programs,)](
        clean, layers, streaks, counts, rainy, target, *clean.stride(), H, W, cell_rows, groups, **RAIN_PLAN
    )  # fmt: skip
    return rainy, target
