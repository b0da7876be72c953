"""restore: the reference's stitching, seams, sizes, kinds of images, memory."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ipt_fast import IPT, IPTConfig, restore
from ipt_fast.inference.restoration import _batch_that_fits
from ipt_fast.tiling.windows import blend_axis

TINY = IPTConfig(n_feats=4, num_heads=2, num_layers=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IPT(TINY).eval()


@pytest.fixture(scope="module")
def golden(shared):
    tensors = load_file(shared / "golden/ipt_official.safetensors")
    model = IPT(IPTConfig(n_feats=16, num_heads=12, num_layers=2))
    # The golden run used the exact mean shift; the file holds it rounded to float16.
    weights = {k[8:]: v for k, v in tensors.items() if k.startswith("weights.") and "_mean." not in k}
    model.load_state_dict(weights, strict=False)
    return model.eval(), tensors


@pytest.mark.parametrize("number, task", [(0, "sr2"), (2, "sr4"), (3, "derain")])
def test_official_stitching_equals_the_reference(golden, number, task):
    model, tensors = golden
    out = restore(model, tensors[f"chop.task{number}.input"], task, stitch="official")
    assert (out - tensors[f"chop.task{number}.output"]).abs().max() < 1e-3


class Slope(torch.nn.Module):
    """A network whose neighbouring windows disagree by twelve levels: it adds a slope over its own window."""

    config = TINY

    def __init__(self):
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))
        ramp = torch.linspace(-6, 6, 48)
        self.slope = ramp[:, None] + ramp

    def task_index(self, task):
        return 0

    def forward(self, x, task):
        return x + self.slope + self.zero


def steps_of_change(photo, axis, overlap):
    """Mean |gradient| of (output - photo) along an axis: across each window edge, and everywhere."""
    change = restore(Slope(), photo, "denoise30", overlap=overlap) - photo
    steps = change.diff(dim=axis).abs().mean([i for i in range(4) if i != axis])
    starts = blend_axis(photo.shape[axis], 48, 1, overlap).starts
    edges = [s - 1 for s in starts[1:]] + [s + 47 for s in starts[:-1]]
    return steps[edges], steps


@pytest.mark.parametrize("axis", [2, 3])
def test_blend_has_no_seams_where_hard_edges_have(shared, axis):
    path = sorted((shared / "data/CBSD68").glob("*.png"))[0]
    photo = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float()
    photo = photo[..., :288, :288]  # six whole windows without overlap
    hard_edges, _ = steps_of_change(photo, axis, overlap=0)
    assert hard_edges.min() > 8
    edges, everywhere = steps_of_change(photo, axis, overlap=10)
    assert edges.max() < everywhere.mean()
    assert everywhere.max() < 0.25 * hard_edges.max()


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (47, 49), (48, 48), (61, 97)])
@pytest.mark.parametrize("stitch", ["blend", "official"])
def test_any_size(model, size, stitch):
    image = torch.rand(1, 3, *size) * 255
    out = restore(model, image, "sr2", stitch=stitch)
    assert out.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert torch.isfinite(out).all()


def test_one_window_is_the_network_itself(model):
    x = torch.rand(2, 3, 48, 48) * 255
    with torch.no_grad():
        assert (restore(model, x, "sr3") - model(x, "sr3")).abs().max() < 1e-3


def test_batches_of_windows_and_of_images_do_not_matter(model):
    images = torch.rand(2, 3, 70, 90) * 255
    wanted = restore(model, images, "derain", batch_size=1)
    assert (restore(model, images, "derain") - wanted).abs().max() < 1e-3
    assert (restore(model, images[1], "derain", batch_size=5) - wanted[1]).abs().max() < 1e-3


def test_same_kind_comes_out(model, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(array)
    picture.save(tmp_path / "in.png")
    from_array = restore(model, array, "sr2")
    assert from_array.shape == (40, 60, 3) and from_array.dtype == np.uint8
    assert np.array_equal(np.array(restore(model, picture, "sr2")), from_array)
    assert np.array_equal(np.array(restore(model, tmp_path / "in.png", "sr2")), from_array)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    out = restore(model, tensor, "sr2")
    assert out.dtype == torch.float32 and out.shape == (3, 40, 60)
    assert np.array_equal(out.clamp(0, 255).round().byte().permute(1, 2, 0).numpy(), from_array)


def test_alpha_is_kept_and_gray_is_repeated(model):
    rgba = Image.new("RGBA", (20, 10), (200, 100, 50, 128))
    out = restore(model, rgba, "sr2")
    assert out.mode == "RGBA" and out.size == (40, 20) and set(np.unique(np.array(out)[..., 3])) == {128}
    gray = np.full((10, 12), 90, np.uint8)
    assert np.array_equal(restore(model, gray, "derain"), restore(model, np.repeat(gray[..., None], 3, 2), "derain"))


def test_pil_images_of_other_kinds_are_taken_as_files_are(model):
    """16-bit gray is scaled and not clipped, EXIF rotation is applied."""
    gray = np.arange(120, dtype=np.uint8).reshape(10, 12)
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    wanted = restore(model, Image.fromarray(gray), "derain")
    assert np.array_equal(np.array(restore(model, deep, "derain")), np.array(wanted))
    turned = Image.fromarray(np.repeat(gray[..., None], 3, 2))
    turned.getexif()[0x0112] = 6
    turned.getexif()[0x010F] = "Maker"
    turned.info["icc_profile"] = b"\0" * 16 + b"RGB " + bytes(200)
    upright = restore(model, turned, "sr2")
    assert upright.size == (20, 24) and upright.info["icc_profile"] == turned.info["icc_profile"]
    exif = Image.Exif()
    exif.load(upright.info["exif"])
    assert dict(exif) == {0x010F: "Maker"} and dict(turned.getexif()) == {0x0112: 6, 0x010F: "Maker"}


def test_sixteen_bit_arrays_stay_so_and_progress_adds_up(model):
    array = np.random.default_rng(0).integers(0, 65536, (60, 70, 3), dtype=np.uint16)
    for ensemble in (False, True):
        shares = []
        out = restore(model, array, "sr2", batch_size=2, self_ensemble=ensemble, progress=shares.append)
        assert sum(shares) == pytest.approx(1) and len(shares) > 1
    exact = restore(model, torch.from_numpy(array.astype(np.float32) / 257).permute(2, 0, 1), "sr2", self_ensemble=True)
    assert out.dtype == np.uint16 and out.shape == (120, 140, 3)
    assert np.abs(out - (exact.clamp(0, 255) * 257).permute(1, 2, 0).numpy()).max() <= 0.51


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(model, dtype):
    image = torch.rand(1, 3, 50, 60) * 255
    out = restore(model, image, "denoise50", dtype=dtype)
    full = restore(model, image, "denoise50")
    assert out.dtype == torch.float32
    assert 0 < (out - full).abs().mean() < 0.02 * (full - image).abs().mean() + 0.5


def test_half_precision_inside_a_training_step_leaves_its_gradients(model):
    """Weights that autocast has cast for restore carry no history; a later training step must not get them."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        restore(model, torch.rand(1, 3, 48, 48) * 255, "denoise50", dtype=torch.bfloat16)
        model(torch.rand(1, 3, 48, 48) * 255, "denoise50").sum().backward()
    assert model.body.encoder.layers[0].linear1.weight.grad is not None
    model.zero_grad(set_to_none=True)


def test_self_ensemble_is_the_mean_of_flips_and_transposes(model):
    x = torch.rand(1, 3, 48, 48) * 255
    wanted = torch.zeros(1, 3, 96, 96)
    with torch.no_grad():
        for k in range(4):
            for flip in (False, True):
                turned = torch.rot90(x.flip(-1) if flip else x, k, (-2, -1))
                back = torch.rot90(model(turned, "sr2"), -k, (-2, -1))
                wanted += (back.flip(-1) if flip else back) / 8
    assert (restore(model, x, "sr2", self_ensemble=True) - wanted).abs().max() < 1e-3


class Greedy(torch.nn.Module):
    """Runs out of memory with more than ``most`` windows."""

    def __init__(self, model, most, text="[enforce fail] DefaultCPUAllocator: can't allocate memory"):
        super().__init__()
        self.model, self.most, self.text = model, most, text
        self.config, self.task_index, self.seen = model.config, model.task_index, []

    def forward(self, x, task):
        self.seen.append(len(x))
        if len(x) > self.most:
            raise RuntimeError(self.text)
        return self.model(x, task)


def test_smaller_batches_when_memory_runs_out(model):
    image = torch.rand(1, 3, 100, 100) * 255
    greedy = Greedy(model, 2)
    with pytest.warns(ResourceWarning, match="out of memory with 9 windows at once, going on with 4"):
        out = restore(greedy, image, "derain", batch_size=9)
    assert greedy.seen[:2] == [9, 3] and max(greedy.seen[2:]) <= 2
    assert (out - restore(model, image, "derain")).abs().max() < 1e-3


def test_other_errors_and_one_window_too_many_are_raised(model):
    image = torch.rand(1, 3, 48, 48)
    with pytest.raises(RuntimeError, match="allocate memory"):
        restore(Greedy(model, 0), image, "derain")
    with pytest.raises(RuntimeError, match="something else"):
        restore(Greedy(model, 0, "something else"), image.expand(4, -1, -1, -1), "derain")


def test_automatic_batch_is_at_least_one_and_falls_with_memory(model, monkeypatch):
    monkeypatch.setattr("ipt_fast.inference.restoration._free_memory", lambda: 1)
    assert _batch_that_fits(model, 4) == 1
    monkeypatch.setattr("ipt_fast.inference.restoration._free_memory", lambda: 1 << 40)
    assert _batch_that_fits(model, 4) == 16


def test_weights_are_left_as_they_were(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = restore(model, torch.rand(1, 3, 48, 60), "sr2", dtype=torch.bfloat16)
    assert not out.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "image, options, message",
    [
        (torch.zeros(1, 1, 50, 50), {}, r"image must be a path, a PIL image.*got \[1, 1, 50, 50\]"),
        (np.zeros((5, 5, 4), np.uint8), {}, "1 or 3 channels"),
        (np.zeros((5, 5, 3)), {}, "needs a uint8 image"),
        ("photo", {"task": "blur"}, "'blur' is not in this network"),
        ("photo", {"stitch": "hard"}, "stitch must be"),
        ("photo", {"overlap": 48}, "overlap must be 0 to 47"),
        ("photo", {"batch_size": 0}, "batch_size must be at least 1"),
        ("photo", {"dtype": torch.int16}, "dtype must be"),
        (12, {}, "got int"),
    ],
)
def test_errors_say_what_is_needed(model, image, options, message):
    image = torch.zeros(1, 3, 50, 50) if isinstance(image, str) else image
    with pytest.raises(ValueError, match=message):
        restore(model, image, **{"task": "sr2", **options})
