"""What ``degrade`` promises for every task and backend: ranges, exactness, seeds, and every refusal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipt_fast.degradations.bicubic import bicubic_down
from ipt_fast.degradations.rain import rain_layers
from ipt_fast.ops.degrade import backend_status, degrade
from ipt_fast.tasks import TASKS, get_task

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


def crops(batch=4, height=48, width=48, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator).to(device)


@pytest.mark.parametrize("task", [*TASKS, "denoise12.5"])
def test_input_and_target_of_every_task(task, device):
    clean = crops(device=device)
    kept = clean.clone()
    noisy, target = degrade(clean, task, seeds=torch.arange(4, device=device))
    side = 48 // get_task(task).scale
    assert noisy.shape == (4, 3, side, side) and target.shape == (4, 3, 48, 48)
    for x in (noisy, target):
        assert x.dtype == torch.float32 and x.device.type == device.type
        assert x.min() >= 0 and x.max() <= 255
    assert torch.equal(target, clean.float()) and torch.equal(clean, kept)
    assert not torch.equal(noisy, target[..., :side, :side])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_degraded_crop_is_the_crop_of_the_degraded_photo(scale, device):
    photo = crops(1, 40 * scale, 50 * scale, device=device)
    small = bicubic_down(photo, scale)
    for top, left in ((0, 0), (3, 7), (28, 38)):
        crop = photo[..., top * scale : (top + 12) * scale, left * scale : (left + 12) * scale]
        given, target = degrade(crop, f"sr{scale}", margin=2)
        assert torch.equal(given, small[..., top + 2 : top + 10, left + 2 : left + 10])
        assert torch.equal(target, crop[..., 2 * scale : -2 * scale, 2 * scale : -2 * scale].float())


@pytest.mark.parametrize("task", ["derain", "denoise50"])
def test_the_top_left_corner_of_a_photo_gets_what_the_photo_gets(task, device):
    photo, seeds = crops(2, 100, 90, device=device), torch.tensor([1, 2], device=device)
    whole, _ = degrade(photo, task, seeds=seeds)
    part, _ = degrade(photo[..., :48, :50], task, seeds=seeds)
    assert torch.equal(part, whole[..., :48, :50])


@settings(max_examples=25, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    batch=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5),
)
def test_an_image_does_not_depend_on_its_batch(task, batch, rows, columns, seeds):
    clean, seeds = crops(batch, 12 * rows, 12 * columns), torch.tensor(seeds[:batch])
    given, target = degrade(clean, task, seeds=seeds)
    for b in range(batch):
        alone = degrade(clean[b : b + 1], task, seeds=seeds[b : b + 1])
        assert torch.equal(alone[0], given[b : b + 1]) and torch.equal(alone[1], target[b : b + 1])


@pytest.mark.parametrize("task", ["derain", "denoise30"])
def test_a_generator_or_its_seeds_decide(task):
    clean = crops()
    drawn = [degrade(clean, task, generator=torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    torch.manual_seed(3)
    first = degrade(clean, task)[0]
    second = degrade(clean, task)[0]
    torch.manual_seed(3)
    assert torch.equal(degrade(clean, task)[0], first) and not torch.equal(first, second)
    assert len({float(image.sum()) for image in degrade(clean[:1].expand(4, -1, -1, -1), task)[0]}) == 4


def test_super_resolution_draws_no_numbers():
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    degrade(crops(), "sr2", generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("task", TASKS)
def test_strides_do_not_matter(task):
    stored = crops().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    seeds = torch.arange(4)
    for a, b in zip(degrade(stored, task, seeds=seeds), degrade(crops(), task, seeds=seeds), strict=True):
        assert torch.equal(a, b)


def test_rain_is_one_gray_layer_or_that_of_the_caller():
    clean, seeds = crops().clamp(max=20), torch.arange(4)
    layer = degrade(clean, "derain", seeds=seeds)[0] - clean
    expected = rain_layers(seeds, 48, 48)
    clear = expected < 200
    for channel in range(3):
        assert (layer[:, channel] - expected).abs()[clear].max() < 1e-4
    asked = []

    def own(seeds, height, width):
        asked.append((seeds.tolist(), height, width))
        return torch.full((len(seeds), height, width), 7.0)

    assert torch.equal(degrade(clean, "derain", seeds=seeds, rain=own)[0], clean.float() + 7)
    assert asked == [([0, 1, 2, 3], 48, 48)]


def test_the_task_may_be_given_as_one():
    assert torch.equal(degrade(crops(), get_task("sr3"))[0], degrade(crops(), "sr3")[0])


@pytest.mark.gpu
@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_gives_what_the_cpu_gives(task):
    """Bit for bit for super-resolution; to rounding of log, cos and exp for noise and rain."""
    clean, seeds = crops(16), torch.arange(16)
    expected = degrade(clean, task, seeds=seeds)[0]
    given = degrade(clean.cuda(), task, seeds=seeds.cuda())[0].cpu()
    assert (given - expected).abs().max() <= (0 if task.startswith("sr") else 2e-3)


REFUSED = [
    ({"clean": crops().float()}, TypeError, r"clean must be uint8 \(got torch.float32\)"),
    ({"clean": [1]}, TypeError, r"\(got list\)"),
    ({"clean": crops()[0]}, ValueError, r"clean must be \[B, 3, H, W\] and not empty \(got shape \[3, 48, 48\]\)"),
    ({"clean": crops()[:, :2]}, ValueError, r"got shape \[4, 2, 48, 48\]"),
    ({"clean": crops()[:0]}, ValueError, r"got shape \[0, 3, 48, 48\]"),
    ({"task": "sr5"}, ValueError, "task 'sr5' is not known; choose one of sr2"),
    ({"task": "deblur"}, ValueError, '"deblur" has no synthetic degradation; it is trained on pairs of photos'),
    ({"rain": rain_layers}, ValueError, r'rain= is for the task "derain" \(got "sr2"\); leave it out'),
    ({"margin": -1}, ValueError, r"margin must be at least 0 \(got -1\)"),
    ({"margin": 2, "task": "derain"}, ValueError, 'margin is 2 for the task "derain"; it has to be 0, or more for sr'),
    ({"margin": 12}, ValueError, r"sr2 with margin 12 needs .* multiples of 2 and at least 50 pixels \(got 48 x 48\)"),
    ({"clean": crops(4, 48, 47)}, ValueError, r"multiples of 2 .*\(got 48 x 47\); cut the crops to that"),
    ({"seeds": torch.arange(3)}, ValueError, r"seeds must be \[B\] with B=4, one per image \(got \[3\] on cpu"),
    ({"seeds": torch.zeros(4)}, TypeError, r"seeds must be int64 \(got torch.float32\)"),
    ({"task": 2}, TypeError, r"task must be a name or a Task \(got 2\)"),
    ({"seeds": [1, 2, 3, 4]}, TypeError, r"seeds must be a tensor \[B\] \(got list\)"),
    ({"margin": 1.5}, TypeError, r"margin must be a whole number \(got 1.5\)"),
    ({"generator": 7}, TypeError, r"generator must be a torch.Generator \(got 7\)"),
    ({"task": "derain", "rain": 3}, TypeError, r"rain must be a function"),
    ({"impl": "cuda"}, ValueError, 'impl="cuda" is not a backend; choose one of .*eager'),
]


@pytest.mark.parametrize("change, error, message", REFUSED)
def test_refusals_say_what_is_needed(change, error, message):
    call = {"clean": crops(), "task": "sr2", **change}
    with pytest.raises(error, match=message):
        degrade(call.pop("clean"), call.pop("task"), **call)


def test_eager_serves_every_device():
    assert backend_status("cpu")["eager"] is None and backend_status("cuda")["eager"] is None
    expected = degrade(crops(), "denoise30", seeds=torch.arange(4))[0]
    assert torch.equal(degrade(crops(), "denoise30", seeds=torch.arange(4), impl="eager")[0], expected)
