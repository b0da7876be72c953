"""The Triton kernels of degrade against plain PyTorch: the same bits for super-resolution, the same random words."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")

import triton
import triton.language as tl

from ipt_fast.degradations import philox, rain
from ipt_fast.kernels import degrade as kernels
from ipt_fast.kernels.degrade import philox_words
from ipt_fast.ops.degrade import backend_status, degrade
from ipt_fast.tasks import Task

SEEDS = torch.tensor([-1, 2**63 - 1, -(2**63), 0, 123456789123456789])


def crops(batch, height, width, device, levels=256):
    return (torch.randint(0, levels, (batch, 3, height, width)) * (255 // (levels - 1))).to(device, torch.uint8)


def both(clean, task, **options):
    """(input, target) by Triton and by the reference."""
    if not task.startswith("sr"):
        options["seeds"] = SEEDS[: len(clean)].to(clean.device)
    return [degrade(clean, task, impl=impl, **options) for impl in ("triton", "eager")]


def check_exact(got, want):
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.float32 and g.is_contiguous() and torch.equal(g, w)


def check_close(got, want, tolerance):
    assert got[0].dtype == torch.float32 and got[0].is_contiguous() and torch.equal(got[1], want[1])
    off = (got[0] - want[0]).abs()
    assert not off.isnan().any()
    if off.is_cpu:
        assert off.max() <= tolerance
    else:  # sines that differ in the last bit may move the edge of a streak by a pixel
        assert (off > tolerance).float().mean() < 5e-4


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    "batch, h, w, margin, levels",
    [
        (1, 1, 1, 0, 256),  # all taps lie beyond the border
        (3, 6, 7, 2, 256),  # a crop: odd batch, the margin that pre-training takes
        (1, 17, 5, 0, 2),  # more rows than a tile; black and white pixels overshoot and clamp
        (1, 3, 63, 0, 256),  # more columns than a tile
        (1, 6, 70, 2, 256),
    ],
)
def test_shrinking_gives_the_same_bits(device, scale, batch, h, w, margin, levels):
    clean = crops(batch, h * scale, w * scale, device, levels)
    check_exact(*both(clean, f"sr{scale}", margin=margin))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_neighbouring_levels_tie_and_are_rounded_up(device, scale):
    clean = crops(1, 8 * scale, 30 * scale, device).remainder(2) + 100
    check_exact(*both(clean, f"sr{scale}"))


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "part of a photo": lambda x: torch.cat([x, x, x], 3)[..., x.shape[3] : 2 * x.shape[3]],
    "every other column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "one image for all": lambda x: x[:1].expand(len(x), -1, -1, -1),
}


@pytest.mark.parametrize("task", ["sr2", "denoise50", "derain"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(device, layout, task):
    clean = LAYOUTS[layout](crops(2, 18, 22, device))
    seeds = SEEDS[:2].to(device)
    got, want = (degrade(x, task, seeds=seeds, impl="triton") for x in (clean, clean.contiguous()))
    check_exact(got, want)


@triton.jit
def words_kernel(SEEDS, OUT, PURPOSE: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr):
    """Words at the counters (i - 7, 3 i) of one seed a program, int64 [B, 4, BLOCK]."""
    i = tl.arange(0, BLOCK)
    words = philox_words(tl.load(SEEDS + tl.program_id(0)), i - 7, i * 3, PURPOSE, PART)
    OUT += tl.program_id(0) * 4 * BLOCK + i
    for word in tl.static_range(4):
        tl.store(OUT + word * BLOCK, words[word].to(tl.int64))


@pytest.mark.parametrize("purpose, part", [(0, 0), (1, 0), (2, 1)])
def test_the_words_are_those_of_the_reference(device, purpose, part):
    seeds, i = SEEDS.to(device), torch.arange(64, device=device)
    out = torch.empty(len(seeds), 4, 64, dtype=torch.int64, device=device)
    words_kernel[(len(seeds),)](seeds, out, PURPOSE=purpose, PART=part, BLOCK=64)
    assert torch.equal(out, torch.stack(philox.philox(seeds[:, None], i - 7, i * 3, purpose, part), 1))


@pytest.mark.parametrize("shape", [(5, 48, 48), (3, 1, 1), (2, 37, 53), (1, 20, 300)], ids=str)
@pytest.mark.parametrize("sigma", [50, 0.5])
def test_noise_is_that_of_the_reference(device, shape, sigma):
    check_close(*both(crops(*shape, device), f"denoise{sigma}"), 1e-3)


def test_noise_is_clipped_and_none_is_missing(device):
    for level in (0, 255):
        clean = torch.full((2, 3, 40, 40), level, dtype=torch.uint8, device=device)
        noisy = both(clean, "denoise30")[0][0]
        assert noisy.min() >= 0 and noisy.max() <= 255
        assert 0.45 < (noisy == level).float().mean() < 0.55
        assert len(noisy[noisy != level].unique()) > 0.99 * (noisy != level).sum()


@pytest.mark.parametrize("shape", [(5, 48, 48), (2, 1, 1), (2, 37, 53), (1, 20, 140)], ids=str)
def test_rain_is_that_of_the_reference(device, shape):
    got, want = both(crops(*shape, device), "derain")
    check_close(got, want, 2e-3)


def test_the_streaks_of_a_whole_photo(device):
    """More rows and groups of cells than one program draws; streaks enter over each edge."""
    clean, seeds = torch.zeros(1, 3, 70, 150, dtype=torch.uint8, device=device), torch.tensor([7], device=device)
    got, want = (degrade(clean, "derain", seeds=seeds, impl=impl) for impl in ("triton", "eager"))
    check_close(got, want, 2e-3)
    wet = want[0][0, 0] > 1
    assert min(edge.sum() for edge in (wet[0], wet[-1], wet[:, 0], wet[:, -1])) > 40


def test_the_numbers_of_rain_are_those_of_the_reference():
    own = (kernels.CELL, kernels.REACH_Y, kernels.REACH_X, kernels.MAX_WIDTH, kernels.FIXED_POINT)
    assert [n.value for n in own] == [rain.CELL, rain.REACH_Y, rain.REACH_X, rain.MAX_WIDTH, rain.FIXED_POINT]
    own = (kernels.NOISE, kernels.RAIN_IMAGE, kernels.RAIN_STREAK)
    assert [n.value for n in own] == [philox.NOISE, philox.RAIN_IMAGE, philox.RAIN_STREAK]


@pytest.mark.parametrize("task", ["derain", "denoise50"])
def test_the_top_left_corner_of_a_photo_gets_what_the_photo_gets(device, task):
    photo, seeds = crops(2, 50, 60, device), SEEDS[:2].to(device)
    whole = degrade(photo, task, seeds=seeds, impl="triton")[0]
    part = degrade(photo[..., :33, :35], task, seeds=seeds, impl="triton")[0]
    assert torch.equal(part, whole[..., :33, :35])
    alone = degrade(photo[1:], task, seeds=seeds[1:], impl="triton")[0]
    assert torch.equal(alone, whole[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [(3, 20, 33), (1, 20, 33)], ids=["one an image", "one for all"])
def test_layers_of_the_caller_are_added(device, dtype, layers):
    clean = crops(3, 20, 33, device)
    layer = (torch.rand(layers, device=device) * 90 - 10).to(dtype)
    layer[0, 4, 5] = torch.nan
    got, target = degrade(clean, "derain", rain=lambda seeds, height, width: layer, impl="triton")
    want = (clean.double() + layer[:, None].double()).clamp(0, 255)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-4, equal_nan=True)
    assert got.isnan().sum() == 3 * (3 // layers[0]) and torch.equal(target, clean.float())


def test_registration(device):
    ops, clean, seeds = torch.ops.ipt_fast, crops(2, 12, 24, device), SEEDS[:2].to(device)
    calls = (
        (seeds, None, "sr", 3, 0.0, 1),
        (seeds, None, "denoise", 1, 30.0, 0),
        (seeds, None, "derain", 1, 0.0, 0),
        (seeds, torch.rand(2, 12, 24, device=device), "derain", 1, 0.0, 0),
    )
    last = clean.contiguous(memory_format=torch.channels_last)
    for arguments in calls:
        for first in (clean, last):
            checks = ("test_schema", "test_faketensor")
            torch.library.opcheck(ops.degrade.default, (first, *arguments, "triton"), test_utils=checks)


@pytest.mark.parametrize("task", ["sr2", "denoise50", "derain"])
def test_compiled_without_a_graph_break_it_is_the_same(device, task):
    clean, seeds = crops(2, 12, 24, device), SEEDS[:2].to(device)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, s: degrade(x, task, seeds=s, impl="triton"), fullgraph=True, backend="aot_eager")
    check_exact(compiled(clean, seeds), degrade(clean, task, seeds=seeds, impl="triton"))


def test_what_it_cannot_serve_is_refused_with_the_reason_or_left_to_pytorch(device):
    clean, task = crops(1, 20, 20, device), Task("sr5", "sr", scale=5)
    with pytest.raises(RuntimeError, match=r'impl="triton" has kernels for the scales 2, 3, 4 \(got 5\); use .*eager'):
        degrade(clean, task, impl="triton")
    check_exact(degrade(clean, task), degrade(clean, task, impl="eager"))


def test_it_is_the_automatic_choice_on_a_gpu_only(device, monkeypatch):
    assert backend_status(device) == {"triton": None, "eager": None}
    assert next(iter(backend_status(device))) == ("eager" if device.type == "cpu" else "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend_status("cpu")["triton"] == "needs a CUDA device of capability 7.0 or newer (found cpu)"
    with pytest.raises(RuntimeError, match=r"needs a CUDA device of capability 7\.0"):
        degrade(crops(1, 12, 12, "cpu"), "sr2", impl="triton")
