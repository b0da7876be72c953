"""Degradations follow the device and dtype of what they are given, never torch's defaults, and keep no fake tensor."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.degradations.streak_folder import StreakFolder
from ipt_fast.ops import degrade

SEEDS = torch.tensor([3, 1 << 40])


def crops(side):
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)).save(tmp_path / "streaks.png")
    return tmp_path


def cases(side, folder):
    """name -> call(clean, seeds); ``side`` is new to each test, so that nothing is kept of it yet."""
    streaks = StreakFolder(folder)
    return {
        "shrink": lambda clean, seeds: degrade(clean, "sr3", margin=2),
        "enlarge": lambda clean, seeds: [bicubic_up(clean, 2)],
        "noise": lambda clean, seeds: degrade(clean, "denoise30", seeds=seeds),
        "rain": lambda clean, seeds: degrade(clean, "derain", seeds=seeds),
        "streaks": lambda clean, seeds: degrade(clean, "derain", seeds=seeds, rain=streaks),
    }


NAMES = ("shrink", "enlarge", "noise", "rain", "streaks")


@pytest.mark.parametrize("name", NAMES)
def test_the_default_device_changes_nothing_then_or_later(name, folder):
    clean = crops(27)
    with torch.device("meta"):  # stands for a GPU that is the default device
        under = cases(27, folder)[name](clean, SEEDS)
    for a, b in zip(under, cases(27, folder)[name](clean, SEEDS), strict=True):
        assert a.device.type == b.device.type == "cpu" and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_default_dtype_changes_nothing(name, dtype, folder):
    clean = crops(33)
    expected = cases(33, folder)[name](clean, SEEDS)
    torch.set_default_dtype(dtype)
    try:
        found = cases(33, folder)[name](clean, SEEDS)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("name", ("shrink", "enlarge", "noise", "rain"))
def test_a_dry_run_has_the_strides_and_leaves_nothing_behind(name, folder):
    clean, call = crops(36).to(memory_format=torch.channels_last), cases(36, folder)[name]
    with FakeTensorMode() as mode:
        fakes = call(mode.from_tensor(clean), mode.from_tensor(SEEDS))
    metas = call(clean.to("meta"), SEEDS.to("meta"))
    for real, fake, meta in zip(call(clean, SEEDS), fakes, metas, strict=True):
        assert type(real) is torch.Tensor and real.stride() == fake.stride() == meta.stride()
        assert real.shape == fake.shape == meta.shape


@pytest.mark.parametrize("name", ("shrink", "noise", "rain"))
def test_compilers_vmap_and_tracing_go_through(name, folder):
    clean, call = crops(39), cases(39, folder)[name]
    wanted = call(clean, SEEDS)[0]
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(clean, SEEDS)[0], wanted)
    assert torch.equal(torch.jit.trace(call, (clean, SEEDS))(clean, SEEDS)[0], wanted)
    several = torch.vmap(call)(torch.stack([clean, clean.flip(3)]), torch.stack([SEEDS, SEEDS + 1]))[0]
    assert torch.equal(several[0], wanted) and torch.equal(several[1], call(clean.flip(3), SEEDS + 1)[0])


@pytest.mark.gpu
def test_streaks_keep_no_fake_tensor(folder):
    streaks = StreakFolder(folder)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layers = streaks(mode.from_tensor(SEEDS).to("cuda"), 20, 20)
        assert layers.device.type == "cuda" and layers.shape == (2, 20, 20)
        again = streaks(mode.from_tensor(SEEDS).to("cuda"), 20, 20)
    with FakeTensorMode(allow_non_fake_inputs=True) as other:  # would refuse what the first one made
        assert streaks(other.from_tensor(SEEDS).to("cuda"), 20, 20).shape == again.shape
